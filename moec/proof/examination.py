"""An engine is examined on a text: windows of it through the untouched model and the engine, and a few through the programs behind them."""

from __future__ import annotations

import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch

from moec.capture.source import Source
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.huggingface.companions import describe
from moec.pipeline.calibration import CalibrationText
from moec.program.decoder_signature import text_inputs
from moec.program.program import Program
from moec.proof.agreement import measure_agreement
from moec.proof.compare import Tolerance
from moec.proof.damage_by_cause import measure_shift
from moec.proof.quality import Exam, Quality, measure
from moec.report.report import Report
from moec.text.corpus import Corpus

INSIDE_TOKENS = 2048  # of the text, for choices of experts and errors of layers: runs in PyTorch that read every weight anew
BUDGET_ON_TEXT = 1e6  # the max|d|/std that is allowed where a budget on a text decides: finite, so that NaN still fails


def examine(exam: Exam, corpus: Corpus, source: Source, reference: Engine, engine: Engine, captured: Program, program: Program) -> Quality:
    """Judge an engine.

    Args:
        exam, corpus: the text, and its tokens.
        source: its context bounds the windows.
        reference, engine: whose logits are compared.
        captured, program: whose insides are: the graph of the reference, and the one that the engine was built from.
    """
    exam = replace(exam, window=min(exam.window, describe(source).context or sys.maxsize))
    quality = measure(reference, engine, corpus.windows(exam.window, exam.tokens), exam, corpus.sha256)
    few = list(corpus.windows(exam.window, min(exam.tokens or INSIDE_TOKENS, INSIDE_TOKENS), batch=1))
    inside = measure_agreement(captured, program, (text_inputs(captured.inputs, ids) for ids in few))
    shift = measure_shift(captured, program, few) if program.approximate else None
    return replace(quality, agreement=inside, shift=shift, source_bytes=source.size_bytes)


def require_same_text(file: str, digest: str, purpose: str) -> None:
    """Raise M106 when a text is not the one that an engine was judged on, or calibrated on."""
    path = Path(file)
    if not path.is_file() or sha256(path.read_bytes()).hexdigest() != digest:
        raise MoecError("M106", f"the text that the engine was {purpose} on has changed, or is missing", str(path), "put it back, or compile anew")


def calibration_of(report: Report) -> CalibrationText | None:
    """The text that an engine was calibrated on, None without one. Raises M106 when it is not the same any more."""
    if report.calibration is None:
        return None
    given = dict(report.calibration)
    require_same_text(given["file"], given.pop("sha256"), "calibrated")
    return CalibrationText(**given)


def allowed(precision: torch.dtype, asked: float | None, exam: Exam | None, approximate: bool) -> Tolerance:
    """What an engine's outputs may deviate: what was asked for, else the precision's own; after approximate passes, their budget, in whose
    place stands the exam's where it sets one."""
    if asked is None and approximate and exam is not None and exam.bounded:
        asked = BUDGET_ON_TEXT
    return Tolerance(asked) if asked is not None else Tolerance.of(precision, approximate)


def rounding(precision: torch.dtype, program: Program) -> torch.dtype | None:
    """The precision by whose rounding alone an engine may differ from the untouched model; None where a budget of approximate passes decides."""
    return None if program.approximate else precision
