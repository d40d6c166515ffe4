"""What counts as reached: an expert that a comparison would see spoiled, in a mixture of either kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.proof.reach import BY_HAND, Reach
from tests.mixtures import WAYS, WIDTH, Expert, Loop, Mixture, Rectified, Switch, mixture, source_of
from tests.moe_module import MoeModel
from tests.moe_module import source_of as dialect_source
from tests.proof.test_influence import Whispered

SIZES = ({"batch": 2, "sequence": 7}, {"batch": 1, "sequence": 1}, {"batch": 2, "sequence": 37})


def reached(model: nn.Module) -> Reach:
    """After a few inputs."""
    source = source_of(model)
    reach, samples = Reach(source.capture()), [source.sample(sizes) for sizes in SIZES]
    for sample in samples:
        reach.look(sample)
    reach.settle(samples)
    return reach


@pytest.mark.parametrize("way", WAYS)
def test_an_expert_that_no_token_reaches_is_missed_in_every_way_of_writing(way: type[Mixture]) -> None:
    closed = reached(mixture(way).close(2))
    assert [closed.missed(block) for block in closed.blocks] == [(2,)] and not closed.unused
    assert closed.blocks[0].node == BY_HAND and len(closed.blocks[0].experts) == 4, "three of them are reached"


def test_an_expert_that_counts_for_a_billionth_is_missed() -> None:
    found = reached(mixture(Whispered))
    assert found.missed(found.blocks[0]) == (2,)


def test_tokens_that_a_capacity_drops_reach_nothing() -> None:
    torch.manual_seed(0)
    model = Switch()
    model.capacity = 0
    found = reached(model)
    assert found.missed(found.blocks[0]) == (0, 1, 2, 3)


def test_an_expert_whose_last_matrix_is_zero_is_reached() -> None:
    model = mixture(Loop)
    nn.init.zeros_(model.experts[1].down.weight)
    found = reached(model)
    assert found.missed(found.blocks[0]) == ()
    found = reached(model.close(1))
    assert found.missed(found.blocks[0]) == (1,), "zeros are no excuse for what no token reaches"


def test_the_experts_of_the_dialect_are_asked_too() -> None:
    source = dialect_source(MoeModel())
    reach, sample = Reach(source.capture()), source.sample(SIZES[-1])
    assert [len(reach.missed(block)) for block in reach.blocks] == [4, 4]
    assert not reach.look(sample), "only mixtures in plain operators are searched for by looking"
    assert [reach.missed(block) for block in reach.blocks] == [(), ()]


def test_an_expert_behind_a_gate_that_nothing_selects_is_told() -> None:
    closed, whole = reached(mixture(Rectified).close(2)), reached(mixture(Rectified))
    assert [found.missed(found.blocks[0]) for found in (closed, whole)] == [(2,), ()]
    assert closed.unused == whole.unused == ()  # matrices of experts are told by their experts


class Branch(nn.Module):
    """A second path that no input takes; a path behind zeros, as an adapter starts; a hard choice without a gate."""

    def __init__(self, open_: bool = False) -> None:
        super().__init__()
        self.embedding, self.main, self.other = nn.Embedding(64, WIDTH), Expert(), Expert()
        self.a, self.b = nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, WIDTH, bias=False)
        self.hard, self.bound = nn.Linear(WIDTH, 2), -1.0 if open_ else 1e3
        nn.init.zeros_(self.b.weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.embedding(input_ids)
        rare = (h[..., :1] > self.bound) * self.other(h)
        side = self.hard(h).argmax(-1, keepdim=True).float()
        return self.main(h) + rare + self.b(self.a(h)) + side  # type: ignore[no-any-return]


def test_another_matrix_that_no_input_reaches_is_told() -> None:
    torch.manual_seed(0)
    assert reached(Branch()).unused == ("other.up.weight", "other.down.weight")
    assert reached(Branch(open_=True)).unused == ()


class Queries(Loop):
    """As a detector's decoder: what a matrix multiplies first is zeros of the input's size, whatever the input."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(WIDTH, WIDTH)

    def mix(self, x: Tensor) -> Tensor:
        return super().mix(x) + self.value(torch.zeros_like(x))


def test_a_product_that_no_input_changes_is_not_asked_for() -> None:
    found = reached(mixture(Queries))
    assert not found.unused and not any(found.missed(block) for block in found.blocks)
