"""What an engine may deviate."""

from __future__ import annotations

import torch

from moec.program.program import Program
from moec.proof.compare import Tolerance
from moec.proof.quality import Exam

BUDGET_ON_TEXT = 1e6  # the max|d|/std that is allowed where a budget on a text decides: finite, so that NaN still fails


def allowed(precision: torch.dtype, asked: float | None, exam: Exam | None, approximate: bool) -> Tolerance:
    """What an engine's outputs may deviate: what was asked for, else the precision's own; after approximate passes,
    their budget, in whose place stands the exam's where it sets one."""
    if asked is None and approximate and exam is not None and exam.bounded:
        asked = BUDGET_ON_TEXT
    return Tolerance(asked) if asked is not None else Tolerance.of(precision, approximate)


def rounding(precision: torch.dtype, program: Program) -> torch.dtype | None:
    """The precision by whose rounding alone an engine may differ from the untouched model; None where a budget of
    approximate passes decides."""
    return None if program.approximate else precision
