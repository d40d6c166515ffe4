"""From programs to ONNX: opaque dialect nodes, lazy weights, names, nothing of this machine."""

from __future__ import annotations

import re

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from moec.backends.onnx.export import route_plainly, source_line, strip_traces, to_onnx, unsqueeze_complex
from moec.backends.onnx.tensors import WeightTensor
from moec.dialect import Activation, Routing
from moec.errors import MoecError
from moec.frontend.export import capture
from tests.moe_module import MoeModel, source_of

OPSET = 23


def test_the_dialect_stays_opaque_and_weights_stay_lazy() -> None:
    program = source_of(MoeModel()).capture()
    model = to_onnx(program, OPSET)
    assert [n.op_type for n in model.graph if n.domain == "moec"] == ["Experts", "Experts"], (
        "a block becomes routing and experts"
    )
    lazy = {
        n: v.const_value.weight for n, v in model.graph.initializers.items() if isinstance(v.const_value, WeightTensor)
    }
    assert lazy.keys() == program.weights.keys() and all(lazy[n] is w for n, w in program.weights.items())


def test_the_signature_keeps_its_names() -> None:
    graph = to_onnx(source_of(MoeModel()).capture(), OPSET).graph
    assert [(i.name, [str(d) for d in i.shape or ()]) for i in graph.inputs] == [("input_ids", ["batch", "sequence"])]
    assert [o.name for o in graph.outputs] == ["logits"]


def test_nothing_of_this_machine_is_in_it() -> None:
    model = to_onnx(source_of(MoeModel()).capture(), OPSET)
    assert "/" in repr([n.metadata_props for n in model.graph])
    strip_traces(model)
    text = (
        ir.to_proto(model).SerializeToString()
        if not model.graph.initializers
        else repr([n.metadata_props for n in model.graph])
    )
    assert "/" not in str(text) and not model.metadata_props and model.producer_name == "moec"


def test_nodes_know_the_line_of_the_model_they_came_from() -> None:
    model = to_onnx(source_of(MoeModel()).capture(), OPSET)
    lines = {source_line(n) for n in model.graph if n.domain == "moec"}
    assert all(re.fullmatch(r"moe_module.py:\d+", line) for line in lines) and len(lines) == 2
    assert source_line(ir.node("Relu", [None])) == ""


def test_what_a_runtime_has_stays_whole() -> None:
    program, asked = source_of(MoeModel()).capture(), []

    def keeps(routing: Routing, selection_bias: bool, activation: Activation, score_before: bool) -> bool:
        asked.append((routing.top_k, selection_bias, activation.name, score_before))
        return True

    assert [n.op_type for n in to_onnx(program, OPSET, keeps).graph if n.domain == "moec"] == ["Experts", "Moe"]
    assert len(asked) == 1


def test_a_tied_weight_is_one_initializer() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids))

    graph = to_onnx(
        capture(Tied(), {"ids": torch.zeros(3, 11, dtype=torch.int64)}, {"ids": ("batch", "sequence")}), OPSET
    ).graph
    assert sum(isinstance(v.const_value, WeightTensor) for v in graph.initializers.values()) == 1


def test_what_onnx_lacks_is_refused() -> None:
    class Eigenvalues(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvalsh(x)

    with pytest.raises(MoecError) as caught:
        to_onnx(capture(Eigenvalues(), {"x": torch.randn(4, 4)}), OPSET)
    assert caught.value.code == "M208"


def test_stand_ins_equal_what_they_stand_for() -> None:
    logits, x = torch.randn(5, 8), torch.randn(3, 4, dtype=torch.complex64)
    for found, want in zip(route_plainly(logits, top_k=2), torch.ops.moec.route(logits, top_k=2), strict=True):
        assert torch.equal(found, want)
    assert all(torch.equal(unsqueeze_complex(x, d), x.unsqueeze(d)) for d in (0, 1, 2, -1, -2))


class Attend(nn.Module):
    """Attention with all but one setting left at its default."""

    def __init__(self, **rule: float) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.moec.attention(x, x, x, None, None, scale=0.5, **self.rule)  # type: ignore[no-any-return]


def test_defaults_are_written_down_and_truth_values_are_numbers() -> None:
    rules = []
    for rule in ({}, {"causal": True, "softcap": 2.0}):
        model = to_onnx(capture(Attend(**rule), {"x": torch.randn(1, 2, 3, 4)}), 20)
        (node,) = [n for n in model.graph if n.domain == "moec"]
        rules.append({a.name: a.value for a in node.attributes.values()})
    assert rules == [{"scale": 0.5, "softcap": 0.0, "causal": 0}, {"scale": 0.5, "softcap": 2.0, "causal": 1}]


class Turned(nn.Module):
    """A table of complex numbers, as some rotary embeddings keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turns", torch.polar(torch.ones(5, 2), torch.arange(10.0).view(5, 2)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x) * self.turns)


def test_a_complex_table_is_lazy_and_in_pairs() -> None:
    program = capture(Turned(), {"x": torch.randn(3, 5, 2, 2)}, {"x": ("batch", None, None, None)})
    (table,) = (v.const_value for v in to_onnx(program, OPSET).graph.initializers.values()
                if isinstance(v.const_value, WeightTensor))  # fmt: skip
    (weight,) = program.weights.values()
    assert tuple(table.shape) == (5, 2, 2) and weight in table.weight.inputs
    assert torch.equal(table.weight.load(), torch.view_as_real(weight.load()))
