"""In-place operators become functional ones exactly where nothing can tell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moec.frontend.export import capture
from moec.program.functional import drop_dead, functionalize, is_in_place
from tests.calls import Calls


def renormalize(x: Tensor) -> Tensor:
    values, _ = (x + 1).topk(2, dim=-1)
    values /= values.sum(-1, keepdim=True)
    return values


def mask(x: Tensor) -> Tensor:
    closed = torch.zeros_like(x)
    closed.scatter_(1, x.topk(2).indices, 1)
    return x.masked_fill(closed.bool(), 0.0)


def through_view(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0].mul_(3)
    return y


def read_later_through_view(x: Tensor) -> Tensor:
    y = x * 2
    row = y.view(-1)
    y.add_(1)
    return row * 1


def own_input(x: Tensor) -> Tensor:
    return x.add_(1) * 2


def half_by_single(x: Tensor) -> Tensor:
    return (x * 2).to(torch.bfloat16).mul_(x).float()


@pytest.mark.parametrize(
    ("function", "left"),
    [(renormalize, 0), (mask, 0), (through_view, 1), (read_later_through_view, 1), (own_input, 1), (half_by_single, 1)],
)
def test_the_function_stays_the_same(function: Callable[[Tensor], Tensor], left: int) -> None:
    program = capture(Calls(function), {"x": torch.rand(3, 5)}, {"x": ("batch", None)})
    functionalize(program.graph)
    program.graph_module.recompile()
    assert sum(is_in_place(n) for n in program.graph.nodes) == left
    x = torch.rand(7, 5)
    assert torch.equal(program.run(x=x.clone())["output"], function(x.clone()))


def test_dead_code_can_go_once_it_is_functional() -> None:
    program = capture(Calls(renormalize), {"x": torch.rand(3, 5)})
    functionalize(program.graph)
    output = next(n for n in program.graph.nodes if n.op == "output")
    output.args = ((next(n for n in program.graph.nodes if n.op == "placeholder"),),)
    program.finish()
    assert [n.op for n in program.graph.nodes] == ["placeholder", "output"]


@pytest.mark.parametrize(("training", "left"), [(False, 0), (True, 1)])
def test_dropout_that_drops_nothing_keeps_nothing_alive(training: bool, left: int) -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(
        torch.ops.aten.dropout.default, (graph.call_function(torch.ops.aten.relu.default, (x,)), 0.5, training)
    )
    graph.output(x)
    drop_dead(graph)
    assert sum(node.op == "call_function" for node in graph.nodes) == 2 * left
