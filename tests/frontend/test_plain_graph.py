"""Graphs survive JSON; what would call something that is no operator is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import moec
from moec.frontend.plain_graph import GraphReader, plain_graph
from moec.frontend.plain_sizes import NotPlainError
from moec.program.program import Program
from moec.program.provenance import module_paths


class Many(nn.Module):
    """Arguments of many kinds: dtypes, devices, lists, an infinite number, several outputs, sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        x = input
        mask = torch.full((x.shape[0], x.shape[0]), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        top, _ = torch.topk(self.inner(x), 2)
        y = x.contiguous(memory_format=torch.contiguous_format).view(x.shape[0], 2, -1)[..., ::2].to(torch.float64)
        return torch.softmax(mask, -1) @ top, y


@pytest.fixture(scope="module")
def program() -> Program:
    return moec.capture(Many(), {"input": torch.ones(5, 6)}, {"input": ("rows", None)})


def through_json(graph: fx.Graph) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(plain_graph(graph)))
    return found


def test_a_graph_comes_back(program: Program) -> None:
    again = GraphReader(through_json(program.graph)).graph()
    assert str(again) == str(program.graph) and through_json(again) == through_json(program.graph)
    for old, new in zip(program.graph.nodes, again.nodes, strict=True):
        assert (old.name, old.target, module_paths(old)) == (new.name, new.target, module_paths(new))
        shown = str(old.meta.get("val")).replace(", requires_grad=True", "")  # which nothing reads of a Program
        assert shown == str(new.meta.get("val")), "shapes, dtypes, devices, fake or not"
        assert old.meta.get("stack_trace") == new.meta.get("stack_trace")
    x, other = torch.randn(3, 6), replace(program, graph_module=fx.GraphModule(program.graph_module, again))
    want, got = program.run(input=x), other.run(input=x)
    assert all(torch.equal(want[name], got[name]) for name in program.outputs)


def test_another_number_is_seen(program: Program) -> None:
    plain = through_json(program.graph)
    text = json.dumps(plain).replace('"float": "-inf"', '"float": "inf"')
    assert text != json.dumps(plain) and str(GraphReader(json.loads(text)).graph()) != str(program.graph)


@pytest.mark.parametrize("target", ["os.system", "torch.load", "builtins.eval", "torch.ops.aten.from_file.default"])
def test_what_is_no_operator_is_not_called(program: Program, target: str) -> None:
    plain = through_json(program.graph)
    call = next(node for node in plain["nodes"] if node[0] == "call_function")
    call[2] = target
    with pytest.raises(ValueError, match="no operator"):
        GraphReader(plain).graph()


def test_what_has_no_plain_form_is_refused() -> None:
    graph = fx.Graph()
    graph.call_function(torch.ops.aten.add.Tensor, (object(), 1))
    with pytest.raises(NotPlainError, match="object"):
        plain_graph(graph)
    other = fx.Graph()
    other.call_function(print, ())
    with pytest.raises(NotPlainError, match="print"):
        plain_graph(other)
