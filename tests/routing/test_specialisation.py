"""What experts know of domains, in bits."""

from __future__ import annotations

import pytest
import torch

from moec.routing.specialisation import specialisation


def test_experts_of_one_domain_each_know_it_whole() -> None:
    counts = torch.tensor([[5, 5, 0, 0]] * 6 + [[0, 0, 5, 5]] * 6)
    found = specialisation(counts, [0] * 6 + [1] * 6)
    assert found.bits == pytest.approx(1) and found.most_bits == pytest.approx(1)
    assert found.chance_bits < 0.2 and found.corrected_bits == pytest.approx(1 - found.chance_bits)


def test_by_hand() -> None:
    # joint 3/8 1/8 / 1/8 3/8: 1 - H(3/4, 1/4) = 1 - 0.811278
    found = specialisation(torch.tensor([[3, 1]] * 4 + [[1, 3]] * 4), [0] * 4 + [1] * 4)
    assert found.bits == pytest.approx(0.188722, abs=1e-6)


def test_what_chance_gives_is_taken_off() -> None:
    drawn = torch.randint(0, 4, (40, 16), generator=torch.Generator().manual_seed(0))
    found = specialisation(drawn, [0, 1] * 20)
    assert found.bits > 0 and found.corrected_bits < found.bits / 2
    alone = specialisation(torch.tensor([[9, 0], [0, 9]]), [0, 1])  # one window each: shuffles change nothing
    assert alone.bits == pytest.approx(1) and alone.corrected_bits == 0
