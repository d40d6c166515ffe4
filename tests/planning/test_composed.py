"""A step as the sum of kernels, from tables made up so that the sum is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moec.planning.composed import WITHIN, composed, products
from moec.planning.devices import devices
from moec.planning.formats import FORMATS, with_state
from moec.planning.interpolation import Table
from moec.planning.load import read_load
from moec.planning.measured import Tables
from moec.planning.rooflines import LAUNCH, attention_floor, exchange_floor, experts_floor, matrix_floor, prompt_floor
from moec.planning.shape import Tensor
from moec.planning.step import Time, time_of
from moec.planning.work import Work
from tests.planning.shapes import dense, mixture

H200, BF16 = devices()["h200"], FORMATS["bf16"]
GRID = 2.0 ** np.arange(0, 15, 2)


def table(floor: Callable[..., Any], times: float, *axes: Any) -> Table:
    """Every kernel takes so many times the roofline."""
    sizes = np.stack([a.ravel() for a in np.meshgrid(*axes)], axis=1)
    return Table(sizes, times * floor(sizes), floor, (1,) * len(axes), f"made {times}")


def tables(times: float, without: str = "") -> Tables:
    read: dict[str, Table | None] = {
        "matrices": table(matrix_floor(H200, BF16), times, GRID, GRID[4:], GRID[4:]),
        "experts": table(experts_floor(H200, BF16), times, GRID, [1024], [2048], [2], [8], [2, 8], [3]),
        "attention": table(attention_floor(H200), times, GRID, GRID, [16], [4], [64]),
        "attention of a prompt": table(prompt_floor(H200), times, GRID, GRID, [16], [4], [64]),
        "latent": None,
        "exchanges": None,
    }
    return Tables(f"made {times}", H200, BF16, Path(), read | ({without: None} if without else {}))


def middle(time: Time | None) -> float:
    assert time is not None
    return (time.low + time.high) / 2


def test_kernels_at_half_the_roofline_take_twice_its_time() -> None:
    work = Work(mixture(layers=32), BF16, 256, 4096)
    found = composed(work, H200, [tables(2.0)])
    assert found is not None and set(dict(found.parts)) == {"matrices", "experts", "attention", "rest"}
    limit = max(work.step.bytes / 4.8e12, work.step.flops / 989e12)
    kernels = sum(seconds for name, seconds in found.parts if name != "rest")
    expected = 2 * (limit + LAUNCH * (1 + 32 * (3 + 3 + 1)))  # the head; three products, experts, attention of a layer
    assert kernels == pytest.approx(expected, rel=0.04) != pytest.approx(0.85 * expected, rel=0.04)
    assert found.low < kernels + dict(found.parts)["rest"] < found.high
    assert found.high / found.low < 1.6 and found.bound == time_of(work.step, H200, BF16).bound


def test_the_two_fastest_frameworks_are_the_interval() -> None:
    work = Work(mixture(), BF16, 8, 512)
    one, two, three = (composed(work, H200, [tables(t)]) for t in (1.5, 2.0, 9.0))
    found = composed(work, H200, [tables(t) for t in (9.0, 1.5, 2.0)])
    assert found and one and two and three
    assert (found.low, found.high) == (one.low, two.high) and three.low > found.high
    assert "made 1.5, made 2.0" in found.origin and "9.0" not in found.origin


def test_without_a_table_of_what_takes_most_there_is_no_answer() -> None:
    assert composed(Work(mixture(), BF16, 1, 100), H200, [tables(2.0, "experts")]) is None
    assert composed(Work(dense(), BF16, 1, 100), H200, [tables(2.0, "matrices")]) is None
    assert composed(Work(dense(), BF16, 1, 100), H200, [tables(2.0, "experts")]) is not None
    assert composed(Work(dense(), BF16, 1, 100), H200, []) is None


def test_what_a_table_lacks_is_by_the_roofline() -> None:
    work = Work(mixture(), BF16, 64, 4096)
    with_it, without = (composed(work, H200, [tables(2.0, name)]) for name in ("", "attention"))
    assert with_it and without
    assert without.high - without.low > with_it.high - with_it.low  # and is less sure
    assert 0.5 < dict(without.parts)["attention"] / dict(with_it.parts)["attention"] < 2


def test_a_load_that_touches_fewer_experts_takes_less(tmp_path: Path) -> None:
    shape = mixture(layers=16)
    uniform, skewed = (
        middle(composed(Work(shape, BF16, 8, 64, read_load(text, shape)), H200, [tables(2.0)]))
        for text in ("uniform", "zipf:3")
    )
    assert skewed < 0.95 * uniform


def test_a_state_of_fewer_bits_is_read_faster() -> None:
    """Attention over half the bytes takes half the time, less what a launch takes; prompts read no state."""
    narrow = with_state(BF16, "fp8")
    wide, half = (composed(Work(mixture(), f, 64, 8192), H200, [tables(2.0)]) for f in (BF16, narrow))
    assert wide and half and "8" in half.origin.partition("attention scaled")[2] and "scaled" not in wide.origin
    assert dict(half.parts)["attention"] / dict(wide.parts)["attention"] == pytest.approx(0.5, abs=0.05)
    assert dict(half.parts)["matrices"] == dict(wide.parts)["matrices"]
    rough, less = (composed(Work(mixture(), f, 64, 8192), H200, [tables(2.0, "attention")]) for f in (BF16, narrow))
    assert rough and less and dict(less.parts)["attention"] == pytest.approx(dict(rough.parts)["attention"] / 2)
    prompts = [composed(Work(mixture(), f, 1, 512, prompt=True), H200, [tables(2.0)]) for f in (BF16, narrow)]
    assert prompts[0] == prompts[1]


def test_prompts_and_drafts() -> None:
    prompt = composed(Work(mixture(), BF16, 1, 4096, prompt=True), H200, [tables(2.0)])
    assert prompt is not None and prompt.bound == "compute"
    one, draft, four = (
        middle(composed(Work(mixture(), BF16, n, 8192, rows=r), H200, [tables(2.0)]))
        for n, r in ((8, 1), (8, 4), (32, 1))
    )
    assert one < draft < four  # the cache is read once for all rows of a draft


def test_split_over_devices_each_does_its_part_and_they_exchange() -> None:
    work = Work(mixture(layers=32), BF16, 256, 4096)
    one, four = (composed(work, H200, [tables(2.0)], ranks) for ranks in (1, 4))
    assert one and four and set(dict(four.parts)) == {*dict(one.parts), "exchanges"}
    assert dict(four.parts)["attention"] == pytest.approx(dict(one.parts)["attention"] / 4, rel=0.1)
    assert all(dict(one.parts)[n] / 4 < dict(four.parts)[n] < dict(one.parts)[n] for n in ("matrices", "experts"))
    made = tables(2.0)
    made._read["exchanges"] = table(exchange_floor(H200), 3.0, [2, 4, 8], GRID * 64)
    measured = composed(work, H200, [made], 4)
    assert measured and dict(measured.parts)["exchanges"] != pytest.approx(dict(four.parts)["exchanges"], rel=0.01)


def test_what_engines_do_together_is_one_product() -> None:
    names = [("a.q_proj", 64), ("a.k_proj", 16), ("a.v_proj", 16), ("a.o_proj", 32), ("b.q_proj", 64)]
    tensors = [Tensor(f"{name}.weight", (rows, 32), "attention") for name, rows in names]
    tensors += [Tensor("head.weight", (100, 32), "output head"), Tensor("table.weight", (100, 32), "input embedding")]
    tensors += [Tensor("a.bias", (32,), "attention"), Tensor("e.up_proj.weight", (4, 8, 32), "routed experts")]
    found = products(iter(tensors))
    assert found == {(96, 32, False): 1, (32, 32, False): 1, (64, 32, False): 1, (100, 32, True): 1}


def test_the_interval_is_as_wide_as_the_tables_are_unsure() -> None:
    assert all(0.05 < share <= 0.25 for share in WITHIN.values())
