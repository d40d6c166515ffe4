"""A budget is spent: each expert one width for both matrices, all layers from one purse, and what was decided is
said."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from moec.passes.quantize import Quantize
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.program.program import Program
from moec.quantization.bit_budget import Budget, without_data
from moec.quantization.grid import Grid
from moec.recognition.weight_roles import weight_uses
from tests import zoo


@cache
def program() -> Program:
    return zoo.captured("mixtral")


def spent(**options: Any) -> tuple[Any, dict[str, Any]]:
    todo = [(u, Grid(4, 16)) for u in weight_uses(program()) if u.kind in ("experts", "attention")]
    tokens = torch.randint(0, 90, (200,), generator=torch.Generator().manual_seed(0))
    inputs = Calibration(CalibrationText("text", 0, 20), "", tokens).batches(program().inputs)
    return Budget(**options).spend(program(), inputs, todo)


@pytest.mark.parametrize(("bits", "widths"), [(3.0, (2, 4)), (2.25, [4, 2]), (5, (2, 4, 8))])
def test_the_mean_is_what_was_asked(bits: float, widths: Any) -> None:
    done, facts = spent(bits=bits, widths=widths, sensitivity="error")
    blocks = [b["bits"] for b in facts["blocks"]]
    assert len(blocks) == 2 and all(len(b) == 8 for b in blocks) and {w for b in blocks for w in b} <= set(widths)
    assert facts["mean_bits"] == sum(map(sum, blocks)) / 16 <= bits and facts["mean_bits"] > bits - 4 / 16
    assert facts["experts"] == {str(w): sum(b.count(w) for b in blocks) for w in sorted({w for b in blocks for w in b})}
    given = {}
    for use, grid in done:
        assert use.kind == "experts" or grid == Grid(4, 16)
        if use.kind == "experts":
            given.setdefault(use.node, []).append(grid.widths or (grid.bits,) * 8)
    assert [list(first) for first, second in given.values()] == blocks and all(a == b for a, b in given.values())


def test_uniform_ends_are_plain_grids() -> None:
    done, _ = spent(bits=2, sensitivity="frequency")
    assert {g for u, g in done if u.kind == "experts"} == {Grid(2, 16)}


def test_what_was_measured_instead_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "reason" not in spent(bits=3.0)[1]
    monkeypatch.setattr("moec.quantization.sensitivity.total_bytes", lambda: 0)
    facts = spent(bits=3.0)[1]
    assert facts["sensitivity"] == "error" and facts["asked"] == "fisher" and "GiB" in facts["reason"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"bits": 1.5}, "not between"),
        ({"bits": 4.5}, "not between"),
        ({"bits": True}, "not between"),
        ({"bits": "3"}, "not between"),
        ({"bits": 3.0, "widths": [2]}, "two or more"),
        ({"bits": 3.0, "widths": [4, 4]}, "two or more"),
        ({"bits": 3.0, "widths": [2, 3]}, "two or more"),
        ({"bits": 3.0, "widths": 4}, "two or more"),
        ({"bits": 3.0, "sensitivity": "magnitude"}, "not one of fisher"),
    ],
)
def test_what_is_not_possible(options: dict[str, Any], what: str) -> None:
    problem, fix = Budget(**options).problem
    assert what in problem and fix
    assert Budget(3.0).problem == ("", "")


def test_options_without_data_have_the_same_grids() -> None:
    rules = {"*q_proj": 8, "*k_proj": {"method": "gptq", "group": 16}, "*v_proj": {"bits": 2}}
    given = Quantize(method="gptq", budget_bits=3.0, widths=[4, 2, 8], rules=rules, group=32)
    plain = Quantize(**without_data(vars(given)))
    assert not plain.needs_calibration() and given.needs_calibration() and given.without_data() == plain
    assert plain == Quantize(
        method="rtn", experts=2, widths=[4, 2, 8], rules={**rules, "*k_proj": {"method": "rtn", "group": 16}}, group=32
    )


@pytest.mark.parametrize(
    "options",
    [
        {"method": "gptq2"},
        {"budget_bits": 5.0},
        {"budget_bits": 3.0, "experts": 4},
        {"budget_bits": 3.0, "recipe": {"down": 8}},
        {"rules": (1,)},
    ],
)
def test_options_that_are_not_possible_stay(options: dict[str, Any]) -> None:
    assert {k: v for k, v in without_data(vars(Quantize(**options))).items() if k in options} == options
