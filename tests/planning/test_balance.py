"""How evenly a load falls on devices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moec.planning.balance import EVEN, Balance, balance, pack, replication
from moec.planning.load import UNIFORM, Load, read_load
from moec.planning.shape import Shape
from tests.planning.shapes import mixture

SHAPE = mixture(layers=2)


def measured(folder: Path, *layers: list[float]) -> tuple[Shape, Load]:
    path, shape = folder / "load.json", mixture(layers=len(layers))
    path.write_text(json.dumps({"layers": [{"load": layer} for layer in layers]}))
    return shape, read_load(str(path), shape)


def test_a_uniform_load_is_even() -> None:
    assert balance(SHAPE, 4, UNIFORM) == Balance(1, 1, 0, 1)


def test_the_worst_layer_counts_and_placing_helps(tmp_path: Path) -> None:
    shape, load = measured(tmp_path, [1] * 8, [3, 3, 1, 1, 1, 1, 1, 1])
    found = balance(shape, 4, load)
    assert found.in_order == pytest.approx(6 / 3) and found.placed == pytest.approx(4 / 3)
    assert found.copies and found.with_copies and found.with_copies <= EVEN


def test_copies_bring_it_under_the_bound_and_fewer_do_not() -> None:
    shares = [0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]
    copies, left = replication(shares, 4)
    assert copies == 4 and left is not None and left <= EVEN
    assert max(pack(shares, [1] * 8, 4)) * 4 > EVEN
    assert replication([1 / 8] * 8, 4) == (0, pytest.approx(1))


def test_what_copies_hold_adds_up() -> None:
    ranks = pack([0.5, 0.25, 0.125, 0.125], [2, 1, 1, 2], 3)
    assert sum(ranks) == pytest.approx(1) and len(ranks) == 3
    assert max(ranks) == pytest.approx(0.25 + 0.125) or max(ranks) <= 0.375


def test_a_copy_on_every_rank_is_always_even() -> None:
    copies, left = replication([0.5, 0.5 / 3, 0.5 / 3, 0.5 / 3], 4)
    assert left is not None and left <= EVEN and copies is not None and copies <= 12
