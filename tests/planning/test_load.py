"""Loads of experts: uniform, by a power law, measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moec.errors import MoecError
from moec.planning.formats import FORMATS
from moec.planning.load import UNIFORM, read_load
from moec.planning.step import decode_step
from moec.planning.touched import chances, distinct, distinct_of
from tests.planning.shapes import dense, mixture

SHAPE = mixture()


def written(folder: Path, layers: object) -> str:
    path = folder / "load.json"
    path.write_text(json.dumps(layers))
    return str(path)


def measured(folder: Path, load: list[float], layers: int = 4) -> str:
    return written(folder, {"layers": [{"layer": f"layers.{n}.mlp", "load": load} for n in range(layers)]})


def test_a_power_law_is_what_is_drawn() -> None:
    """Of 32 experts 4 a token, by p_i: each expert is taken or not by its own chance, as the formula counts it."""
    shape = mixture(experts=32, top_k=4)
    load = read_load("zipf:1.0", shape)
    odds = np.array(load.chances(0, shape.mixtures[0]))
    assert odds.sum() == pytest.approx(4) and odds[0] == pytest.approx(4 / (1 / np.arange(1, 33)).sum())
    drawn = np.random.default_rng(0).random((2000, 16, 32)) < odds
    found = load.distinct(0, shape.mixtures[0], 16)
    assert found == pytest.approx(drawn.any(axis=1).sum(axis=1).mean(), rel=0.01)
    assert distinct(32, 4, 16) > 1.1 * found


def test_a_measured_load_of_equal_shares_is_uniform(tmp_path: Path) -> None:
    load = read_load(measured(tmp_path, [7] * 8), SHAPE)
    assert load.distinct(0, SHAPE.mixtures[0], 5) == pytest.approx(distinct(8, 2, 5))
    assert not load.uniform and UNIFORM.uniform


def test_dead_experts_are_not_read(tmp_path: Path) -> None:
    load = read_load(measured(tmp_path, [1, 1, 1, 1, 0, 0, 0, 0]), SHAPE)
    step = decode_step(SHAPE, FORMATS["bf16"], 1000, 1, load)
    assert step.experts == pytest.approx(4)
    uniform = decode_step(SHAPE, FORMATS["bf16"], 1000, 1)
    half = sum(m.parameters for m in SHAPE.mixtures)  # half of the experts, two bytes a number
    assert uniform.weight_bytes - step.weight_bytes == pytest.approx(half)


@pytest.mark.parametrize("shares", [(1.0, 0, 0, 0), (0.7, 0.1, 0.1, 0.1), (0.25,) * 4, (0.5, 0.5, 0, 0)])
def test_chances_are_probabilities_that_sum_to_k(shares: tuple[float, ...]) -> None:
    found = chances(shares, 2)
    assert all(0 <= p <= 1 for p in found) and sum(found) == pytest.approx(min(2, sum(s > 0 for s in shares)))
    assert distinct_of(found, 1) == pytest.approx(sum(found))


def test_layers_differ(tmp_path: Path) -> None:
    layers = [[1] * 8, [8, 1, 1, 1, 1, 1, 1, 1], [1] * 8, [1] * 8]
    load = read_load(written(tmp_path, {"layers": [{"load": layer} for layer in layers]}), SHAPE)
    first, second = (load.distinct(n, SHAPE.mixtures[n], 4) for n in (0, 1))
    assert second < first == pytest.approx(distinct(8, 2, 4))


def test_another_model_takes_the_law_and_not_the_measurement(tmp_path: Path) -> None:
    assert read_load("zipf:1.2", SHAPE).elsewhere().power == 1.2
    assert read_load(measured(tmp_path, [1] * 8), SHAPE).elsewhere() == UNIFORM


@pytest.mark.parametrize("text", ["zipf:", "zipf:-1", "zipf:nan", "zipf:99", "none.json", "."])
def test_loads_that_are_none(text: str) -> None:
    with pytest.raises(MoecError, match=r"M201.*\n  where: --load"):
        read_load(text, SHAPE)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([1, 2], "no measured load"),
        ({"layers": [{"load": ["a"]}]}, "no measured load"),
        ({"layers": [{"load": [1] * 8}] * 3}, "3 layers"),
        ({"layers": [{"load": [1] * 7}] * 4}, "7 experts"),
        ({"layers": [{"load": [0] * 8}] * 4}, "from 0 on"),
        ({"layers": [{"load": [-1, *[1] * 7]}] * 4}, "from 0 on"),
        ({"layers": [{"load": [1e999, *[1] * 7]}] * 4}, "measured load"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, layers: object, words: str) -> None:
    with pytest.raises(MoecError, match="M201") as refused:
        read_load(written(tmp_path, layers), SHAPE)
    assert words in str(refused.value) and len(str(refused.value).splitlines()) == 3


def test_a_dense_model_has_no_load() -> None:
    assert read_load("uniform", dense()) == UNIFORM
    with pytest.raises(MoecError, match="no experts"):
        read_load("zipf:1", dense())
