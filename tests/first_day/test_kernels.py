"""The first day's stages of kernels, here in Triton's interpreter: a wrong kernel ends them with the wrong number."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.first_day.day import BENCHMARKS, rows_of
from tests.kernels.conftest import Interpret, interpret

__all__ = ["interpret"]


SPOILED = "odd bfloat16 plain transposed silu T=5"


def kernels(folder: str, wanted: list[str], spoil: str) -> tuple[str, str, int]:
    """The stage on some of its small cases; runs where `interpret` says."""
    sys.path.insert(0, str(BENCHMARKS))
    import first_day_kernels
    from first_day_rows import Rows, run

    right, calls = first_day_kernels.launch.experts, []

    def wrong(x: Any, *rest: Any, **named: Any) -> Any:
        calls.append(x)
        out = right(x, *rest, **named)
        if spoil == "number":
            out[-1] *= 1.05
        if spoil == "race" and len(calls) % 2 == 0:
            out[0, 0] += out[0, 0].abs() * 0.01
        if spoil == "unwritten":
            out[0, 0] = float("nan")
        return out

    trials = [t for t in first_day_kernels.trials(True) if t.name in wanted]
    assert len(trials) == len(wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_day_kernels.launch, "experts", wrong)
        patch.setattr(first_day_kernels, "trials", lambda small: trials)
        rows = Rows("kernels", Path(folder))
        return *run(rows, lambda rows: first_day_kernels.kernels(rows, "cpu", True)), len(rows.done)


def test_right_kernels_pass(interpret: Interpret, tmp_path: Path) -> None:
    names = [SPOILED, "odd bfloat16 int4 straight silu T=5", "odd bfloat16 plain straight silu T=0"]
    assert interpret(kernels, str(tmp_path), names, "") == ("done", "", 3)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("number", f"kernels: {SPOILED}: moec: "),
        ("race", f"kernels: {SPOILED}: moec, second run: 1 elements that differ"),
        ("unwritten", f"kernels: {SPOILED}: moec: inf relative error"),
    ],
)
def test_a_wrong_kernel_ends_the_stage_with_the_number(
    interpret: Interpret, tmp_path: Path, spoil: str, said: str
) -> None:
    state, reason, done = interpret(kernels, str(tmp_path), [SPOILED], spoil)
    assert state == "wrong" and reason.startswith(said) and done == 0


def test_all_cases_have_names_of_their_own_and_cover_what_they_should() -> None:
    from first_day_blocks import Whole
    from first_day_kernels import DTYPES, trials

    every = trials()
    assert {t.model for t in every if isinstance(t, Whole)} == {"mixtral", "qwen3", "gpt-oss", "deepseek"}
    assert len({t.name for t in every}) == len(every)
    every = [t for t in every if not isinstance(t, Whole)]
    assert {t.tokens for t in every} >= {0, 1, 16, 17, 4096}
    kinds = {(t.dtype, t.transposed) for t in every if t.form == "plain" and t.tokens == 4096}
    assert kinds >= {(dtype, turned) for dtype in DTYPES for turned in (False, True)}
    assert {t.form for t in every} == {"plain", "int4", "int8", "fp8"} and {t.size for t in every} >= {
        "qwen3",
        "gpt-oss",
    }


def test_published_times_become_aims(tmp_path: Path) -> None:
    """The aims of a cell, from the time alone: Qwen3's few tokens have to be 1.3 times faster, others as fast."""
    from first_day_anchors import ANCHORS, Balanced, Cell, tell
    from moe_gpu_contestants import SHAPES

    assert all(
        len(ANCHORS[shape][kind]) == len(ANCHORS["tokens"])
        for shape in SHAPES
        if shape != "gpt-oss"
        for kind in ("balanced", "skewed")
    )
    found = {}
    for shape, tokens, us in (
        ("qwen3", 16, 292 / 1.29),
        ("qwen3", 16, 292 / 1.31),
        ("mixtral", 1, 185.0),
        ("mixtral", 256, 752.0),
    ):
        rows = rows_of(tmp_path / f"{shape}{tokens}{us}")
        block = Balanced(SHAPES[shape], 16, "meta", torch.bfloat16)
        for cell in rows.todo([Cell(shape, tokens, 16)], lambda c: c.name):
            tell(rows, cell, block, us, {"bytes_per_s": 4.3e12})
        found[shape, tokens, us] = {r["who"] + " " + r["unit"]: (r["value"], r["met"]) for r in rows.rows if "met" in r}
    few, enough, mixtral, many = found.values()
    assert few == {"moec against the best peer times as fast": (1.29, False)}
    assert enough == {"moec against the best peer times as fast": (1.31, True)}
    assert mixtral["moec against the best peer times as fast"] == (1.022, True)
    bytes_of_two = 2 * 3 * 4096 * 14336 * 2 + 2 * 4096 * 2
    assert mixtral["moec of 4.8 TB/s"] == (round(bytes_of_two / 185e-6 / 4.8e12, 4), False)  # 0.79: just too slow
    assert many == {"moec against the best peer times as fast": (0.999, False)}


def test_balanced_routing_reads_all_experts_in_turn() -> None:
    from first_day_anchors import Balanced
    from moe_gpu_contestants import TOYS

    block = Balanced(TOYS["mixtral"], 16, "cpu", torch.bfloat16)
    x = block.take(1)
    first, second, third = (block.route(x)[1].flatten().tolist() for _ in range(3))
    assert sorted(first + second) == [0, 1, 2, 3] and first == third


def cells(folder: str, spoil: float) -> tuple[str, str, list[dict[str, Any]]]:
    """The stage on one toy cell; runs where `interpret` says."""
    sys.path.insert(0, str(BENCHMARKS))
    import first_day_anchors
    from first_day_rows import Rows, run

    right = first_day_anchors.launch.experts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_day_anchors.launch, "experts", lambda *a, **named: right(*a, **named) * spoil)
        patch.setattr(first_day_anchors, "cells", lambda small: [first_day_anchors.Cell("mixtral", 1, 16)])
        rows = Rows("anchors", Path(folder))
        return *run(rows, lambda rows: first_day_anchors.anchors(rows, "cpu", True)), rows.rows


def test_cells_are_judged_before_they_are_timed(interpret: Interpret, tmp_path: Path) -> None:
    state, _, rows = interpret(cells, str(tmp_path / "right"), 1.0)
    assert state == "done" and {r["who"] for r in rows if r["unit"] == "us"} == {
        "moec",
        "torch._grouped_mm",
        "transformers grouped_mm",
    }
    state, reason, rows = interpret(cells, str(tmp_path / "wrong"), 1.02)
    assert state == "wrong" and reason.startswith("anchors: mixtral 16-bit T=1: moec: ")
    assert [r["unit"] for r in rows] == ["relative error"]


def models(folder: str, which: str, spoil: float) -> tuple[str, str, list[str]]:
    """The stage `accelerate` or `decoder` in small; runs where `interpret` says."""
    sys.path.insert(0, str(BENCHMARKS))
    import first_day_accelerate
    from first_day_rows import Rows, run

    from moec.kernels import dispatch

    right = dispatch.launch.experts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch.launch, "experts", lambda *a, **named: right(*a, **named) * spoil)
        patch.setattr(first_day_accelerate, "MODELS", ("gpt_oss",))
        patch.setattr(first_day_accelerate, "BATCHES", (2,))
        rows = Rows(which, Path(folder))
        state = run(rows, lambda rows: getattr(first_day_accelerate, which)(rows, "cpu", True))
    return *state, [row["who"] for row in rows.rows]


@pytest.mark.parametrize("which", ["accelerate", pytest.param("decoder", marks=pytest.mark.repeats)])
def test_models_are_held_against_the_untouched_one(interpret: Interpret, tmp_path: Path, which: str) -> None:
    state, reason, who = interpret(models, str(tmp_path / "right"), which, 1.0)
    assert (state, reason) == ("done", "") and "moec" in who
    state, reason, _ = interpret(models, str(tmp_path / "wrong"), which, 1.2)
    assert state == "wrong" and reason.startswith(f"{which}: ") and ": moec: " in reason
