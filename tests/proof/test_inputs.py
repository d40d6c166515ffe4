"""Inputs are searched until every expert is reached, and an expert that cannot be reached is listed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moec.frontend.source import Source
from moec.program.program import Input
from moec.proof.inputs import reach_experts
from moec.proof.sizes import verification_sizes
from tests.moe_module import EXPERTS, HIDDEN, MoeModel, source_of


class ByToken(nn.Module):
    """Each token goes to one expert: `experts_of[token]`."""

    def __init__(self, experts_of: Tensor, experts: int) -> None:
        super().__init__()
        self.logits = nn.Buffer(nn.functional.one_hot(experts_of, experts).float())
        self.embedding = nn.Embedding(len(experts_of), HIDDEN)
        self.w_in, self.w_out = (
            nn.Parameter(torch.randn(experts, 24, HIDDEN)),
            nn.Parameter(torch.randn(experts, HIDDEN, 12)),
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        weights, ids = torch.ops.moec.route(nn.functional.embedding(input_ids, self.logits), top_k=1)
        return torch.ops.moec.experts(self.embedding(input_ids), ids, weights, self.w_in, self.w_out)


def by_token(experts_of: list[int], experts: int) -> Source:
    return source_of(ByToken(torch.tensor(experts_of), experts), len(experts_of))


def test_sizes_are_unlike_the_captures_and_hold_the_edge_cases() -> None:
    sizes = verification_sizes(
        [Input("ids", torch.int64, ("batch", "sequence")), Input("image", torch.float32, ("batch", 3, 32))]
    )
    assert {"batch": 1, "sequence": 1} in sizes
    assert max(s["sequence"] for s in sizes) > 20 and len({s["batch"] for s in sizes}) > 2
    assert all(s["batch"] != 3 and s["sequence"] != 11 for s in sizes)


def test_two_lengths_get_two_sizes() -> None:
    sizes = verification_sizes(
        [Input("a", torch.int64, ("batch", "source")), Input("b", torch.int64, ("batch", "target"))]
    )
    assert all(s["source"] != s["target"] for s in sizes if s["source"] > 1)
    assert verification_sizes([Input("x", torch.float32, (2, 3))]) == [{}]


def test_every_expert_of_every_block_is_reached() -> None:
    source = source_of(MoeModel())
    samples, coverage = reach_experts(source.capture(), source)
    assert coverage.complete and coverage.total == 2 * EXPERTS and len(samples) == coverage.samples
    assert [load.module for load in coverage.loads] == ["blocks.0", "blocks.1"]
    tokens = sum(s["input_ids"].numel() for s in samples)
    assert [sum(load.assignments) for load in coverage.loads] == [2 * tokens, 2 * tokens]  # top-2
    assert str(coverage) == f"8/8 experts reached with {len(samples)} inputs"


def test_a_rare_expert_is_searched_for() -> None:
    source = by_token([0] * 100 + [1] + [0] * 99, 2)
    program, sizes = source.capture(), [{"batch": 1, "sequence": 5}, {"batch": 2, "sequence": 7}]
    few, without = reach_experts(program, source, sizes, tries=0)
    assert len(few) == 2 and without.loads[0].missed == (1,)
    samples, coverage = reach_experts(program, source, sizes, tries=100)
    assert coverage.complete and coverage.samples == len(samples) == 3 <= coverage.tried
    assert (samples[2]["input_ids"] == 100).any()


def test_an_expert_that_no_input_reaches_is_listed_and_the_search_ends() -> None:
    source = by_token([0, 2] * 10, 4)
    samples, coverage = reach_experts(source.capture(), source, tries=5)
    assert not coverage.complete and coverage.loads[0].missed == (1, 3) and coverage.reached == 2
    assert coverage.tried == len(samples) + 10 and "not reached: experts: 1, 3" in str(coverage)


def test_a_program_without_experts_needs_no_search() -> None:
    source = source_of(Plain())
    samples, coverage = reach_experts(source.capture(), source)
    assert coverage.complete and coverage.total == 0 and len(samples) == len(verification_sizes(source.inputs))
    assert str(coverage) == "no experts"


class Plain(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids * 2


def test_equal_seeds_give_equal_samples() -> None:
    source = source_of(MoeModel())
    first, again, other = (reach_experts(source.capture(), source, seed=s)[0] for s in (0, 0, 7))
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0]["input_ids"], other[0]["input_ids"])


def test_a_search_sweeps_the_whole_vocabulary_before_any_token_comes_again() -> None:
    """Each of 50 experts but the first has two tokens of a thousand; random draws miss some more often than not."""
    experts_of = torch.zeros(1000, dtype=torch.int64)
    experts_of[torch.arange(100) * 10 + 3] = torch.arange(100) % 50
    source = by_token(experts_of.tolist(), 50)
    program = source.capture()
    tried = [reach_experts(program, source, [{"batch": 1, "sequence": 40}], seed)[1] for seed in range(4)]
    assert all(c.complete and c.tried <= 12 for c in tried)  # 320 tokens an input, each third one sweeps
