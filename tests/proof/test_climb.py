"""A search that is led by the router finds what random inputs don't."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.dialect import Routing, route_reference
from moec.proof import inputs
from moec.proof.climb import Climb, nearness
from moec.proof.inputs import reach_experts
from tests.moe_module import HIDDEN, source_of

WORDS = 200


class ByText(nn.Module):
    """Expert 1 gets a text only when more than three quarters of its tokens are among a quarter of the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, HIDDEN)
        self.score = nn.Buffer((torch.arange(WORDS) % 4 == 0).float().unsqueeze(1))
        self.w_in, self.w_out = nn.Parameter(torch.randn(2, 24, HIDDEN)), nn.Parameter(torch.randn(2, HIDDEN, 12))

    def forward(self, input_ids: Tensor) -> Tensor:
        share = nn.functional.embedding(input_ids, self.score).mean(1, keepdim=True).expand(-1, input_ids.shape[1], 1)
        weights, ids = torch.ops.moec.route(torch.cat([0.75 + 0 * share, share], -1), top_k=1)
        return torch.ops.moec.experts(self.embedding(input_ids), ids, weights, self.w_in, self.w_out)


def test_an_expert_that_random_texts_do_not_reach_is_climbed_to(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(ByText(), WORDS)
    program, sizes = source.capture(), [{"batch": 4, "sequence": 12}]
    # one token a row would do, and is not drawn here
    monkeypatch.setattr(inputs, "_candidates", lambda *_: iter([source.sample({"batch": 8, "sequence": 12}, 7)]))
    coverage = reach_experts(program, source, sizes, 1, tries=80, among=sizes)[1]
    assert coverage.complete and coverage.tried > 5
    monkeypatch.setattr(Climb, "propose", lambda *_: None)
    assert reach_experts(program, source, sizes, 1, tries=80, among=sizes)[1].loads[0].missed == (1,)


@pytest.mark.parametrize("bias", [None, torch.tensor([0.0, 0.0, 9.0, 0.0])])
def test_what_was_chosen_is_not_below_zero_and_all_else_is(bias: Tensor | None) -> None:
    logits, rule = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), Routing(2)
    ids = route_reference(logits, bias, rule)[1]
    near = nearness(logits, bias, rule)
    chosen = torch.zeros(20, 4, dtype=torch.bool).scatter(-1, ids, True)
    assert (near[chosen] >= 0).all() and (near[~chosen] < 0).all()


def test_the_row_that_came_nearest_is_kept_and_the_others_are_changed() -> None:
    source = source_of(ByText(), WORDS)
    climb, sample = Climb(source, {"input_ids": WORDS}), source.sample({"batch": 3, "sequence": 9})
    assert climb.propose([("moe", 1)]) is None
    climb.learn(sample, {"moe": torch.tensor([[0.0, -3.0], [0.0, -1.0], [0.0, -2.0]])})
    found = climb.propose([("moe", 1)])
    assert found is not None and torch.equal(found["input_ids"][0], sample["input_ids"][1])
    assert (found["input_ids"] != sample["input_ids"][1]).any() and found["input_ids"].max() < WORDS
