"""What a matrix adds to the outputs is measured by one backward pass, and by negating it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from moec.frontend.export import capture
from moec.pipeline.pipeline import Pipeline
from moec.program.signature import Sample
from moec.proof.influence import Influence
from moec.recognition.hand_written import Place
from moec.recognition.matrices import find_matrices
from tests import zoo
from tests.mixtures import Loop, Mixture, Stacked, mixture, source_of
from tests.moe_module import MoeModel
from tests.moe_module import source_of as dialect_source

SIZES = {"batch": 2, "sequence": 20}


def measured(model: nn.Module, deviation: float = 1e-3) -> tuple[Influence, Sample, dict[str, tuple[Place, float]]]:
    """By a matrix's name, where it is and its effect."""
    source = source_of(model)
    program, sample = source.capture(), source.sample(SIZES)
    influence = Influence(program, deviation)
    found = influence.effects(sample, find_matrices(program))
    return influence, sample, {place.name: (place, effect) for place, effect in found.items()}


@pytest.mark.parametrize(("way", "part"), [(Loop, "experts.2.up.weight"), (Stacked, "down.2")])
def test_what_no_token_reaches_has_no_effect_at_all(way: type[Mixture], part: str) -> None:
    influence, sample, found = measured(mixture(way).close(2))
    closed, other = found[part], found[part.replace("2", "1")]
    assert closed[1] == 0 and not influence.seen(sample, closed[0])
    assert other[1] > 1 and influence.seen(sample, other[0])


class Whispered(Loop):
    """Expert 2 counts for a billionth."""

    share = 1e-9

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = super().choice(x)
        return torch.where(ids == 2, weights * self.share, weights), ids


def test_a_weight_of_a_billionth_is_not_seen() -> None:
    influence, sample, found = measured(mixture(Whispered))
    place, effect = found["experts.2.down.weight"]
    assert 0 < effect < 1e-3 and not influence.seen(sample, place)


def test_from_an_effect_of_one_on_a_comparison_would_notice() -> None:
    """The bound is on the safe side for any tolerance: what is said to be seen, negation shows."""
    for deviation in (1e-3, 1e-2, 0.1):
        influence, sample, found = measured(mixture(Loop), deviation)
        for place, effect in found.values():
            assert effect < 1 or influence.seen(sample, place), place.name
    assert any(effect < 1 for _, effect in found.values()), "the last tolerance is wide enough to hide something"


class Fixed(nn.Module):
    """Behind a matrix of zeros, and before an output that is an integer."""

    def __init__(self, integers: bool) -> None:
        super().__init__()
        self.first, self.second, self.integers = nn.Linear(4, 6), nn.Linear(6, 5), integers
        if not integers:
            nn.init.zeros_(self.second.weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        y = self.second(self.first(input_ids.unsqueeze(-1).float() / torch.tensor([8.0, 16.0, 32.0, 64.0])))
        return y.argmax(-1) if self.integers else y  # type: ignore[no-any-return]


def test_what_stands_behind_zeros_is_asked_with_numbers_there() -> None:
    source = source_of(Fixed(False))
    program, sample = source.capture(), source.sample(SIZES)
    influence, (first, second) = Influence(program, 1e-3), find_matrices(program)
    assert influence.effects(sample, [first])[Place(first)] == 0
    assert influence.effects(sample, [first], filled=True)[Place(first)] > 0
    assert influence.is_zero(Place(second)) and not influence.is_zero(Place(first))
    assert influence.seen(sample, Place(second)), "zeros have no sign; other numbers are put there"


def test_outputs_without_a_derivative_leave_it_open() -> None:
    torch.manual_seed(0)
    influence, sample, found = measured(Fixed(True))
    assert all(math.isnan(effect) for _, effect in found.values())
    assert influence.seen(sample, found["second.weight"][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dialects_operators_in_every_precision(dtype: torch.dtype) -> None:
    source = dialect_source(MoeModel())
    program = source.capture(dtype)
    found = Influence(program, 1e-3).effects(source.sample(SIZES), find_matrices(program))
    experts = [effect for place, effect in found.items() if place.part is not None]
    assert len(experts) == 16 and min(experts) > 1, "both blocks, both matrices, four experts"


def test_packed_weights_are_asked_as_what_they_stand_for() -> None:
    program = Pipeline.parse("find-moe, fuse-moe, quantize(bits=4, group=16)").run(zoo.captured("mixtral"))[0]
    sample = zoo.source("mixtral").sample({"batch": 2, "sequence": 37, "past_sequence": 0})
    found = Influence(program, 1e-3).effects(sample, find_matrices(program))
    assert sum(effect > 1 for place, effect in found.items() if place.part is not None) == 32


class Leaning(nn.Module):
    """A matrix of numbers that attention adds to its scores, for which its operator has no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.lean = nn.Parameter(torch.eye(5))

    def forward(self, x: Tensor) -> Tensor:
        heads = x[:, None]
        mask = (self.lean @ torch.ones(5, 5))[None, None].expand(x.shape[0], 1, 5, 5)
        result: Tensor = torch.ops.moec.attention(heads, heads, heads, mask * x.mean(), None, scale=1.0)
        return result + x.sum()


def test_what_only_a_mask_reads_is_left_open() -> None:
    """Doge adds a number of each token's own to the scores of attention."""
    torch.manual_seed(0)
    program = capture(Leaning(), {"x": torch.randn(3, 5, 4)}, {"x": ("batch", None, None)})
    found = Influence(program, 1e-3).effects({"x": torch.randn(2, 5, 4)}, find_matrices(program))
    assert found and all(map(math.isnan, found.values()))
