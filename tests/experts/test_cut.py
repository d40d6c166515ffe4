"""A mixture that lost some experts computes what it would compute if it had never had them, however its router is
written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.dialect import Activation, Routing, experts_reference, route_reference
from moec.dialect.experts import dense_expert
from moec.experts.cut import cut, find_block, rename, together
from moec.passes.find_moe import FindMoe
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.recognition.linear import find_linears
from moec.recognition.router_region import NotARouter
from tests.routers import (
    EXPERTS,
    HIDDEN,
    KNOWN,
    Block,
    Router,
    captured,
    deepseek_v3,
    mixtral,
    other_input,
    scaled_per_expert,
)

KEPT = (0, 1, 3, 4, 6, 7)  # four groups of two cannot lose one each: those rules get two groups
TOLERANCE = 2e-6


def prepared(block: nn.Module) -> Program:
    return Pipeline((FindMoe(),)).all_optional().run(captured(block))[0]


def without(program: Program, kept: tuple[int, ...] = KEPT) -> Program:
    linears = find_linears(program)
    for group in together([find_block(n, linears) for n in moe_nodes(program)]):
        rename(program, cut(program, group, kept, "test"))
    program.check()
    program.finish()
    return program


def error(program: Program, expected: Tensor) -> float:
    return float((program.run(x=other_input())["output"] - expected).abs().max() / expected.std())


@torch.no_grad()
def smaller(
    block: Block, rule: Routing, kept: tuple[int, ...], bias: Tensor | None = None, router_bias: Tensor | None = None
) -> Tensor:
    """What a block with these experts only gives."""
    own, rows = list(kept), other_input().view(-1, HIDDEN)
    logits = F.linear(rows, block.gate.weight[own], None if router_bias is None else router_bias[own])
    weights, ids = route_reference(logits, None if bias is None else bias[own], rule)
    expert = dense_expert(block.w_in[own], block.w_out[own], None, None, Activation())
    return experts_reference(rows, ids, weights, expert, len(own)).view(other_input().shape)


@pytest.mark.parametrize("router", [r for r, (rule, _) in KNOWN.items() if rule.groups == 1], ids=lambda r: r.__name__)
def test_every_router_can_be_cut(router: Router) -> None:
    block, (rule, biased) = Block(router), KNOWN[router]
    bias = block.get_buffer("correction") if biased else None
    program = without(prepared(block))
    assert {n: w.shape[0] for n, w in program.weights.items()} == dict.fromkeys(
        program.weights, 6
    ) and "gate.weight" in program.weights
    assert error(program, smaller(block, rule, KEPT, bias)) <= TOLERANCE
    assert error(program, smaller(block, rule, (0, 2, *KEPT[2:]), bias)) > 0.05


def test_groups_stay_groups() -> None:
    block = Block(deepseek_v3)
    program = prepared(block)
    (route,) = program.nodes(torch.ops.moec.route)
    rule = replace(Routing.of(route.kwargs), groups=2, top_groups=1)
    route.kwargs = rule.arguments()
    kept = (0, 1, 3, 4, 6, 7)
    assert error(without(program, kept), smaller(block, rule, kept, block.get_buffer("correction"))) <= TOLERANCE


class Projected(Block):
    """A router whose projection is written in another way."""

    def __init__(self, form: str) -> None:
        super().__init__(mixtral, flat=form != "three dimensions")
        self.form = form
        self.bias = nn.Parameter(torch.randn(EXPERTS))
        self.transposed = nn.Parameter(self.gate.weight.detach().T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, HIDDEN) if self.flat else x
        weights, ids = self.router(self.logits(x, rows), self.get_buffer("correction"))
        y: Tensor = torch.ops.moec.experts(rows, ids, weights, self.w_in, self.w_out)
        return y.view(x.shape)

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        if self.form == "cast":
            return F.linear(rows.type(torch.float64), self.gate.weight.type(torch.float64))
        if self.form == "biased":
            return F.linear(rows, self.gate.weight, self.bias)
        if self.form == "addmm":
            return torch.addmm(self.bias, rows, self.transposed)
        if self.form == "matmul":
            return rows @ self.transposed + self.bias
        return self.gate(x).view(-1, EXPERTS) if self.form == "unflattened" else self.gate(rows)  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["cast", "biased", "addmm", "matmul", "unflattened", "three dimensions"])
def test_every_projection_can_be_cut(form: str) -> None:
    block = Projected(form)
    bias = block.bias if form in ("biased", "addmm", "matmul") else None
    program = without(prepared(block))
    assert all(w.shape[0] == 6 for w in program.weights.values())
    assert error(program, smaller(block, Routing(2), KEPT, router_bias=bias)) <= TOLERANCE
    assert (
        error(
            program, smaller(block, Routing(2), KEPT, router_bias=(0 if bias is None else bias) + torch.randn(EXPERTS))
        )
        > 0.05
    )


class Watched(Block):
    """Gives its logits out."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = self.gate(x.view(-1, HIDDEN))
        weights, ids = mixtral(logits, logits)
        return torch.ops.moec.experts(x.view(-1, HIDDEN), ids, weights, self.w_in, self.w_out), logits


def test_other_readers_of_the_logits_keep_the_old_ones() -> None:
    block = Watched(mixtral)
    program = without(prepared(block))
    y, logits = program.run(x=other_input()).values()
    torch.testing.assert_close(logits, block.gate(other_input().view(-1, HIDDEN)).detach())
    torch.testing.assert_close(y, smaller(block, Routing(2), KEPT).view(-1, HIDDEN))


class Twice(Block):
    """The same experts behind two routers."""

    def __init__(self) -> None:
        super().__init__(mixtral)
        self.second = nn.Linear(HIDDEN, EXPERTS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, HIDDEN)
        for gate in (self.gate, self.second):
            weights, ids = mixtral(gate(rows), rows)
            rows = rows + torch.ops.moec.experts(rows, ids, weights, self.w_in, self.w_out)
        return rows.view(x.shape)


def test_blocks_with_the_same_experts_go_together() -> None:
    program = prepared(Twice())
    linears = find_linears(program)
    (group,) = together([find_block(n, linears) for n in moe_nodes(program)])
    assert len(group) == 2
    program = without(program)
    assert sorted(program.weights) == ["gate.weight", "second.weight", "w_in", "w_out"] and {
        w.shape[0] for w in program.weights.values()
    } == {6}


class Stranger(Block):
    """Something else counts on the experts' numbers."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, HIDDEN)
        weights, ids = torch.ops.moec.route(self.gate(rows), None, top_k=2)
        y: Tensor = torch.ops.moec.experts(rows, ids, weights, self.w_in, self.w_out)
        return y * self.get_buffer("correction")[ids].sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("block", "reason"),
    [(Block(scaled_per_expert), "not one moec::route"), (Stranger(mixtral), "reads its choice too")],
)
def test_what_cannot_be_cut_says_why(block: Block, reason: str) -> None:
    program = prepared(block)
    with pytest.raises(NotARouter, match=reason):
        find_block(moe_nodes(program)[0], find_linears(program))


def test_nothing_is_read_until_it_is_asked_for_and_then_only_what_stays() -> None:
    program = prepared(Block(mixtral))
    reads: list[tuple[int, int]] = []
    whole = program.weights["w_in"]
    program.weights["w_in"] = replace(whole, read=lambda a, b: reads.append((a, b)) or whole.read(a, b))
    program = without(program)
    assert not reads
    for _ in program.weights["w_in"].blocks(1):
        pass
    assert reads == [(e, e + 1) for e in KEPT]
