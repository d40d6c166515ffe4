"""A graph that torch.onnx translates as it is, is not decomposed again, and its numbers and its ONNX stay what they
are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from moec.backends.onnx import export as onnx_export
from moec.backends.onnx.settled import settle
from moec.frontend.export import capture, export
from tests.moe_module import MoeModel, source_of

aten = torch.ops.aten


class Calls(nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def exported(function: Callable[[Tensor], Tensor]) -> torch.export.ExportedProgram:
    return export(Calls(function), {"x": torch.zeros(4, 6)}, {"x": ("batch", None)})


TABLE: dict[Any, Any] = {aten.__and__.Tensor: None}
SETTLED = {
    "own dtype": (lambda x: x.to(torch.float32) + 1, aten.add.Tensor),
    "other dtype": (lambda x: x.to(torch.float64) / 3, aten._to_copy.default),
    "of another": (lambda x: (x > 0).type_as(x), aten._to_copy.default),
    "and": (lambda x: (x > 0) & (x < 1), aten.bitwise_and.Tensor),
    "reshape": (lambda x: x.reshape(-1, 3), aten.view.default),
    "reshape of a transposed tensor": (lambda x: x.t().reshape(2, -1), aten.clone.default),
    "flatten": (lambda x: x.reshape(-1, 2, 3).flatten(1), aten.view.default),
    "flatten to the last": (lambda x: x.reshape(-1, 2, 3).flatten(-2), aten.view.default),
    "chunk": (lambda x: x.chunk(4, -1)[2], aten.split.Tensor),
    "dropout in eval mode": (lambda x: torch.dropout(x, 0.5, False) + 1, aten.add.Tensor),
}


@pytest.mark.parametrize("name", SETTLED)
def test_it_answers_with_itself_and_computes_the_same(name: str) -> None:
    function, operator = SETTLED[name]
    program = exported(function)
    assert settle(program).run_decompositions(TABLE) is program
    targets = {n.target for n in program.graph.nodes if n.op == "call_function"}
    assert operator in targets and not targets & {*TABLE, aten.dropout.default, aten.reshape.default, aten.to.dtype}
    x = torch.randn(7, 6)
    assert torch.equal(program.module()(x=x), function(x))
    assert next(n for n in program.graph.nodes if n.op == "output").args[0][0].meta["val"].dtype == function(x).dtype


LEFT = {
    "a rule of the table": lambda x: torch.addcmul(x, x, x),
    "flatten of dynamic sizes": lambda x: x.t().unsqueeze(-1).flatten(1),
    "written in place": lambda x: x.clone().mul_(2),
    "dropout while training": lambda x: torch.dropout(x, 1.0, True),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_has_to_be_decomposed_is(name: str) -> None:
    program = settle(exported(LEFT[name]))
    whole = program.run_decompositions(torch._decomp.get_decompositions([aten.addcmul.default]))
    assert whole is not program
    x = torch.randn(7, 6)
    torch.testing.assert_close(whole.module()(x=x), LEFT[name](x))


OUTPUTS = {
    "own dtype": lambda x: {"y": (2 * x).float()},
    "dropout": lambda x: {"y": torch.dropout(2 * x, 0.5, False)},
    "own dtype beside": lambda x: {"z": (y := 2 * x), "y": y.float()},
    "dropout beside": lambda x: {"z": (y := 2 * x), "y": torch.dropout(y, 0.5, False)},
    "both, one of the other": lambda x: {"z": (y := torch.dropout(2 * x, 0.5, False)), "y": y.float()},
    "the same twice": lambda x: {"z": (y := 2 * x), "y": y},
    "an input": lambda x: {"z": x.float(), "y": torch.dropout(x + 1, 0.5, False) * 2},
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_changes_nothing_may_be_an_output(name: str) -> None:
    sample = {"x": torch.zeros(4, 6)}
    program = capture(Calls(OUTPUTS[name]), sample, {"x": ("batch", None)})
    model, x = onnx_export.to_onnx(program, 23), np.random.default_rng(0).random((7, 6), np.float32)
    want = OUTPUTS[name](torch.from_numpy(x))
    assert [v.name for v in model.graph.outputs] == list(want)
    session = InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    for found, value in zip(session.run(None, {"x": x}), want.values(), strict=True):
        assert np.array_equal(found, value.numpy())


def test_the_onnx_graph_is_the_one_of_a_decomposed_program(monkeypatch: pytest.MonkeyPatch) -> None:
    program = source_of(MoeModel()).capture()
    decomposed: list[object] = []
    real = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram, "run_decompositions", lambda s, *a: decomposed.append(s) or real(s, *a)
    )
    found = Counter(n.op_type for n in onnx_export.to_onnx(program, 23).graph)
    assert not decomposed
    monkeypatch.setattr(onnx_export, "settle", lambda e: e)
    assert Counter(n.op_type for n in onnx_export.to_onnx(program, 23).graph) == found and len(decomposed) == 1
