"""Times between those that were measured."""

from __future__ import annotations

import numpy as np
import pytest

from moec.planning.interpolation import Numbers, Table, fastest


def made(efficiency: float = 0.5) -> Table:
    """A device with 1e12 B/s and 1e14 FLOP/s whose products reach a share that grows with their size."""
    m, n, k = (a.ravel() for a in np.meshgrid(2.0 ** np.arange(11), 2.0 ** np.arange(8, 14), 2.0 ** np.arange(8, 14)))
    sizes = np.stack([m, n, k], axis=1)
    return Table(sizes, true(sizes, efficiency), floor, (1, 1, 1), "made")


def floor(sizes: Numbers) -> Numbers:
    m, n, k = sizes.T
    found: Numbers = np.maximum(2 * n * k / 1e12, 2 * m * n * k / 1e14) + 3e-6
    return found


def true(sizes: Numbers, efficiency: float = 0.5) -> Numbers:
    found: Numbers = floor(sizes) / (efficiency + 0.04 * np.log2(sizes[:, 0]))
    return found


def test_measured_points_are_given_back() -> None:
    table = made()
    assert table.at(table.sizes) == pytest.approx(table.seconds, rel=5e-3)


def test_between_them_and_beyond_it_follows_the_roofline() -> None:
    asked = np.array([[3, 3000, 700], [100, 5000, 5000], [1000, 6144, 2048], [1, 32768, 4096]], float)
    assert made().at(asked) == pytest.approx(true(asked), rel=0.06)
    assert made(0.3).at(asked) != pytest.approx(true(asked), rel=0.06)  # another device's table would not do


def test_points_that_are_left_out_are_found_again() -> None:
    table = made()
    held = np.random.default_rng(0).random(len(table.seconds)) < 0.1
    found = table.without(held).at(table.sizes[held])
    assert np.abs(found / table.seconds[held] - 1).max() < 0.1
    wrong = Table(table.sizes, table.seconds * np.where(table.sizes[:, 1] > 1000, 3.0, 1.0), floor, (1, 1, 1))
    assert np.abs(wrong.without(held).at(table.sizes[held]) / table.seconds[held] - 1).max() > 0.25


def test_of_repeated_points_the_shortest_counts() -> None:
    sizes, seconds = fastest(np.array([[1.0, 2], [1, 2], [2, 2]]), np.array([5.0, 3, 4]))
    assert sizes.tolist() == [[1, 2], [2, 2]] and seconds.tolist() == [3, 4]


def test_a_table_of_few_points_works() -> None:
    small = Table(np.array([[1.0, 256, 256], [2, 256, 256]]), np.array([4e-6, 4e-6]), floor, (1, 1, 1))
    assert 3e-6 < small.at(np.array([[1.0, 512, 256]]))[0] < 6e-6
