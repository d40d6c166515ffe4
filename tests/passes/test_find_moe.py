"""`find-moe`: every router that a rule can say becomes one `moec::route` that computes the same; others stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.dialect import Routing
from moec.frontend.export import capture
from moec.passes.find_moe import FindMoe
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from tests.routers import EXPERTS, HIDDEN, KNOWN, UNKNOWN, Block, Router, captured, mixtral, other_input

PIPELINE = Pipeline((FindMoe(),), frozenset({"find-moe"}))
TOLERANCE = 2e-6


def found(block: nn.Module) -> tuple[Program, Context]:
    context = Context()
    program, _ = PIPELINE.run(captured(block), context)
    return program, context


def error(program: Program, block: nn.Module) -> float:
    x = other_input()
    with torch.no_grad():
        expected = block(x)
    return float((program.run(x=x)["output"] - expected).abs().max() / expected.std())


@pytest.mark.parametrize("router", KNOWN, ids=lambda r: r.__name__)
def test_known_routers(router: Router) -> None:
    block = Block(router)
    program, context = found(block)
    rule, biased = KNOWN[router]
    (route,) = program.nodes(torch.ops.moec.route)
    assert Routing.of(route.kwargs) == rule and not context.misses
    assert (
        (program.weight_of(route.args[1]) is not None or router.__name__ == "ernie")
        if biased
        else route.args[1] is None
    )
    assert not program.nodes(torch.ops.aten.topk, torch.ops.aten.softmax, torch.ops.aten.sigmoid), (
        "the old router is still there"
    )
    assert error(program, block) <= TOLERANCE


@pytest.mark.parametrize("router", KNOWN, ids=lambda r: r.__name__)
def test_a_wrong_rule_is_seen(router: Router) -> None:
    block = Block(router)
    program, _ = found(block)
    (route,) = program.nodes(torch.ops.moec.route)
    rule = Routing.of(route.kwargs)
    wrong = "scores" if rule.combine in ("renormalize", "softmax", "ones") else "renormalize"
    route.kwargs = {**route.kwargs, "combine": wrong, "scale": rule.scale * 1.001}
    program.graph_module.recompile()
    assert error(program, block) > 100 * TOLERANCE


@pytest.mark.parametrize("router", UNKNOWN, ids=lambda r: r.__name__)
def test_unknown_routers_stay(router: Router) -> None:
    block = Block(router)
    program, context = found(block)
    assert not program.nodes(torch.ops.moec.route) and program.history[-1].rewrites == 0
    assert UNKNOWN[router] in context.misses[0].reason
    assert error(program, block) <= TOLERANCE


def test_twice_changes_nothing() -> None:
    program, context = found(Block(mixtral))
    again, _ = PIPELINE.run(program, context)
    assert again.history[-1].rewrites == 0 and again.text() == program.text() and not context.misses


def test_three_dimensions() -> None:
    block = Block(mixtral, flat=False)
    program, _ = found(block)
    (route,) = program.nodes(torch.ops.moec.route)
    assert route.meta["val"][0].shape[2:] == (2,) and error(program, block) <= TOLERANCE


def rounded(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    weights, ids = mixtral(logits, bias)
    return weights.to(logits.dtype), ids


@pytest.mark.parametrize("scale", [1.0, 1.05])
def test_sixteen_bits(scale: float) -> None:
    block = Block(rounded).to(torch.bfloat16)
    x = other_input().bfloat16()
    program, _ = PIPELINE.run(capture(block, {"x": x[:2]}, {"x": ("batch", "sequence")}))
    (route,) = program.nodes(torch.ops.moec.route)
    route.kwargs = {**route.kwargs, "scale": scale}
    program.graph_module.recompile()
    with torch.no_grad():
        expected = block(x)
    assert (float((program.run(x=x)["output"] - expected).abs().max() / expected.std()) <= 0.03) is (scale == 1.0)


class Watched(Block):
    """Gives its router's logits and weights out, as models do for a load-balancing loss."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        logits = self.gate(x.view(-1, HIDDEN))
        weights, ids = mixtral(logits, logits)
        y = torch.ops.moec.experts(x.view(-1, HIDDEN), ids, weights, self.w_in, self.w_out)
        return y, logits, weights


def test_what_else_is_read_stays_right() -> None:
    block, x = Watched(mixtral), other_input()
    program, _ = found(block)
    assert len(program.nodes(torch.ops.moec.route)) == 1
    for got, expected in zip(program.run(x=x).values(), block(x), strict=True):
        torch.testing.assert_close(got, expected.detach())


class Mixed(Block):
    """Its weights depend on more than its logits."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, HIDDEN)
        weights, ids = mixtral(self.gate(rows), rows)
        y: Tensor = torch.ops.moec.experts(rows, ids, weights * rows.mean(-1, keepdim=True), self.w_in, self.w_out)
        return y


def test_weights_from_elsewhere() -> None:
    program, context = found(Mixed(mixtral))
    assert not program.nodes(torch.ops.moec.route) and "depend on more than the logits" in context.misses[0].reason


def test_new_nodes_know_where_they_come_from() -> None:
    program, _ = found(Block(mixtral))
    (route,) = program.nodes(torch.ops.moec.route)
    assert route.meta["moec_pass"] == "find-moe" and "self.router" in route.meta["stack_trace"]
    assert [tuple(v.shape[1:]) for v in route.meta["val"]] == [(2,), (2,)] and route.args[0].meta["val"].shape[
        1
    ] == EXPERTS  # type: ignore[union-attr]
