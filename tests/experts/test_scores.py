"""Scores of experts are what their definitions say, computed the long way round; the best are kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect import Activation
from moec.dialect.experts import dense_expert
from moec.experts.scores import Tally, best, shares, tally
from moec.passes.find_moe import FindMoe
from moec.passes.fuse_moe import FuseMoe
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from tests.routers import EXPERTS, HIDDEN, Block, captured, mixtral, olmoe


def inputs() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [{"x": torch.randn(2, 6, HIDDEN, generator=generator)} for _ in range(3)]


def by_hand(block: Block) -> Tally:
    """Token by token, expert by expert."""
    sums = torch.zeros(3, EXPERTS, dtype=torch.float64)
    expert = dense_expert(block.w_in, block.w_out, None, None, Activation())
    for x in torch.cat([i["x"].reshape(-1, HIDDEN) for i in inputs()]):
        weights, ids = block.router(block.gate(x[None]), block.get_buffer("correction"))
        for e, gate in zip(ids[0].tolist(), (weights[0] / weights[0].sum()).tolist(), strict=True):
            norm = float(expert(e, x[None]).norm())
            sums[:, e] += torch.tensor([1.0, norm, gate * norm])
    return Tally(*sums)


def programs(block: Block) -> list[Program]:
    program = captured(block)
    return [program, Pipeline((FindMoe(), FuseMoe())).run(program)[0]]


@pytest.mark.parametrize("router", [mixtral, olmoe])  # the weights of the second do not sum to 1
@torch.no_grad()
def test_scores_are_those_of_their_definition(router) -> None:  # type: ignore[no-untyped-def]
    block = Block(router)
    want = by_hand(block)
    for program in programs(block):
        got = tally(program, inputs(), moe_nodes(program))[moe_nodes(program)[0]]
        assert torch.equal(got.tokens, want.tokens) and want.tokens.sum() == 36 * (2 if router is mixtral else 3)
        for how in ("reap", "activation", "frequency"):
            torch.testing.assert_close(got.scores(how), want.scores(how), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(want.scores("reap"), want.gated / want.tokens)
    assert not torch.allclose(want.scores("reap"), want.scores("activation") / want.tokens, rtol=0.05), (
        "the gates make no difference"
    )


class Before(Block):
    """Weights come before the experts."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, HIDDEN)
        weights, ids = self.router(self.gate(rows), rows)
        y: Tensor = torch.ops.moec.experts(rows, ids, weights, self.w_in, self.w_out, score_before=True)
        return y.view(x.shape)


@torch.no_grad()
def test_weights_before_the_experts_are_part_of_their_outputs() -> None:
    block = Before(mixtral)
    program = captured(block)
    got = tally(program, inputs(), moe_nodes(program))[moe_nodes(program)[0]]
    rows = torch.cat([i["x"].reshape(-1, HIDDEN) for i in inputs()])
    weights, ids = mixtral(block.gate(rows), rows)
    first = (ids == 0).nonzero()
    hidden = F.linear(rows[first[:, 0]] * weights[first[:, 0], first[:, 1], None], block.w_in[0])
    norms = F.linear(Activation()(hidden), block.w_out[0]).double().norm(dim=-1)
    torch.testing.assert_close(got.gated[0], norms.sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(got.norms[0], norms.sum(), rtol=1e-5, atol=0)


def test_a_weight_of_zero_is_no_visit_and_an_expert_without_visits_is_worth_nothing() -> None:
    block = Block(
        lambda logits, bias: (mixtral(logits, bias)[0] * torch.tensor([1.0, 0.0]), mixtral(logits, bias)[1] * 0)
    )
    program = captured(block)
    got = tally(program, inputs(), moe_nodes(program))[moe_nodes(program)[0]]
    assert got.tokens.tolist() == [36] + [0] * 7
    assert (
        got.scores("reap")[0] > 0 and got.scores("reap")[1:].tolist() == [0] * 7 and got.scores("reap").isfinite().all()
    )


def test_tallies_of_shared_experts_add_up() -> None:
    one = Tally(*torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]], dtype=torch.float64))
    assert (one + one).tokens.tolist() == [2, 0] and (one + one).scores("reap").tolist() == [3, 0]


# ---------------------------------------------------------------------- choice
SCORES = torch.tensor([0.1, 0.9, 0.8, 0.7, 0.2, 0.3, 0.5, 0.4])


@pytest.mark.parametrize(
    ("count", "groups", "kept"),
    [(3, 1, (1, 2, 3)), (8, 1, tuple(range(8))), (4, 2, (1, 2, 6, 7)), (4, 4, (1, 2, 5, 6))],
)
def test_the_best_stay_in_their_order_and_groups_stay_equal(count: int, groups: int, kept: tuple[int, ...]) -> None:
    assert best(SCORES, count, groups) == kept


def test_the_first_of_equals_stays() -> None:
    assert best(torch.ones(6), 2) == (0, 1)


def test_the_lowest_of_all_layers_go_in_units_of_their_layer() -> None:
    flat, steep = torch.ones(4) * 100, torch.tensor([3.0, 0.1, 0.1, 0.8])
    assert shares([flat, steep], 6, [1, 1]) == [4, 2] == shares([flat * 1e-3, steep], 6, [1, 1])
    assert shares([flat, steep], 4, [1, 3]) == [1, 3]
