"""Each operator of the dialect has an opaque node that says all that the operator was told."""

from __future__ import annotations

import onnx.defs as defs
import pytest
import torch
from torch import nn

from moec.backends.onnx.export import to_onnx
from moec.backends.onnx.opaque_nodes import translations
from moec.frontend.export import capture

NODES = {
    "Experts": torch.ops.moec.experts.default,
    "Moe": torch.ops.moec.moe.default,
    "Attention": torch.ops.moec.attention.default,
    "Dequantize": torch.ops.moec.dequantize.default,
    "DequantizeFloat": torch.ops.moec.dequantize_float.default,
}


class Attend(nn.Module):
    """Attention with all but one setting left at its default."""

    def __init__(self, **rule: float) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.moec.attention(x, x, x, None, None, scale=0.5, **self.rule)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NODES)
def test_schemas_are_the_operators_own(name: str) -> None:
    assert NODES[name] in translations()
    schema, arguments = defs.get_schema(name, 1, "moec"), NODES[name]._schema.arguments
    assert set(schema.attributes) == {a.name for a in arguments if a.kwarg_only}
    assert len(schema.inputs) == len([a for a in arguments if not a.kwarg_only])
    assert len(translations()) == len(NODES)


def test_defaults_are_written_down_and_truth_values_are_numbers() -> None:
    rules = []
    for rule in ({}, {"causal": True, "softcap": 2.0}):
        model = to_onnx(capture(Attend(**rule), {"x": torch.randn(1, 2, 3, 4)}), 20)
        (node,) = [n for n in model.graph if n.domain == "moec"]
        rules.append({a.name: a.value for a in node.attributes.values()})
    assert rules == [{"scale": 0.5, "softcap": 0.0, "causal": 0}, {"scale": 0.5, "softcap": 2.0, "causal": 1}]
