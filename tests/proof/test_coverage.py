"""Which experts a run reaches, and which choices rounding decides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moec.compiler.open import open_source
from moec.dialect import Routing
from moec.pipeline.pipeline import Pipeline
from moec.proof.coverage import measure_load, undecided
from tests.moe_module import HIDDEN, VOCAB, Block, source_of


@pytest.mark.parametrize("rule", [Routing(1), Routing(1, "sigmoid", "scores"), Routing(1, combine="softmax")])
def test_choices_that_rounding_decides_are_counted(rule: Routing) -> None:
    clear, near = [3.0, 1.0, 0.0], [2.0, 2.0 + 1e-6, 0.0]
    assert undecided(torch.tensor([clear, clear]), None, rule) == 0
    assert undecided(torch.tensor([clear, near]), None, rule) == 1


def test_a_near_tie_of_groups_is_counted() -> None:
    rule = Routing(1, groups=2, top_groups=1)
    assert undecided(torch.tensor([[3.0, 0.0, 3.0 + 1e-6, 0.0]]), None, rule) == 1
    assert undecided(torch.tensor([[3.0, 0.0, 1.0, 0.9999999]]), None, rule) == 0


class Muted(nn.Module):
    """Sends every token to both experts, the second with weight 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w_in, self.w_out = nn.Parameter(torch.randn(2, 8, HIDDEN)), nn.Parameter(torch.randn(2, HIDDEN, 4))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = input_ids.unsqueeze(-1).expand(-1, -1, HIDDEN).float()
        ids = torch.zeros_like(input_ids).unsqueeze(-1) + torch.tensor([0, 1])
        return torch.ops.moec.experts(x, ids, 1.0 - ids.float(), self.w_in, self.w_out)


def test_an_expert_whose_weight_is_zero_was_not_reached() -> None:
    source = source_of(Muted())
    coverage = measure_load(source.capture(), [source.sample({"batch": 2, "sequence": 5})])
    assert coverage.loads[0].assignments == (10, 0)


class Handed(nn.Module):
    """A mixture that gets no token at all, and one that gets all."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(VOCAB, HIDDEN), nn.ModuleList(Block(fused=True) for _ in range(2))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        return self.blocks[0](x) + self.blocks[1](x[:, :0]).sum()


def test_a_mixture_without_tokens_reaches_no_expert() -> None:
    source = source_of(Handed())
    coverage = measure_load(source.capture(), [source.sample({"batch": 2, "sequence": 5})])
    assert sorted(sum(load.assignments) for load in coverage.loads) == [0, 20]


def test_an_expert_that_only_padding_reaches_was_not_reached(mixtral: Path) -> None:
    source = open_source(str(mixtral))
    program = Pipeline.parse("find-moe").run(source.capture())[0]
    sample = source.sample({"batch": 2, "sequence": 7, "past_sequence": 0})
    real = int(sample["attention_mask"].sum())
    assert real < 14  # the second row is padded
    coverage = measure_load(program, [sample])
    assert [sum(load.assignments) for load in coverage.loads] == [2 * real, 2 * real] and coverage.tokens == 2 * real
