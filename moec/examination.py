"""An engine is examined on a text: windows of it through the untouched model and the engine, and a few through the programs behind them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from moec.agreement import measure_agreement
from moec.compare import Tolerance
from moec.corpus import Corpus, read_corpus
from moec.decoder import IDS, LOGITS
from moec.engine import Engine
from moec.errors import MoecError
from moec.huggingface.companions import describe
from moec.program import Program
from moec.quality import Exam, Quality, measure, require_text_model, text_inputs
from moec.source import Source

INSIDE_TOKENS = 2048  # of the text, for choices of experts and errors of layers: two runs in PyTorch that read every weight anew
BUDGET_ON_TEXT = 1e6  # the max|d|/std that is allowed where a budget on a text decides: finite, so that NaN still fails


def open_exam(exam: Exam, source: Source, folder: Path | None = None) -> Corpus:
    """The exam's text in the source's tokens; read before any other work is done.

    Args:
        folder: of the engine, where there is one; its tokenizer is taken first.

    Raises:
        MoecError: M211 when the source takes no tokens, else see `moec.corpus.read_corpus`.
    """
    require_text_model(source.inputs, (LOGITS,), source.text)
    domain = source.domains.get(IDS)
    vocabulary = domain.high if domain is not None and domain.kind == "token" else 0
    return read_corpus(Path(exam.text), folder or Path(source.text), source.text, vocabulary)


def examine(exam: Exam, corpus: Corpus, source: Source, reference: Engine, engine: Engine, captured: Program, program: Program) -> Quality:
    """Judge an engine.

    Args:
        exam, corpus: what `open_exam` read.
        source: its context bounds the windows.
        reference, engine: whose logits are compared.
        captured, program: whose insides are: the graph of the reference, and the one that the engine was built from.
    """
    exam = replace(exam, window=min(exam.window, describe(source).context or sys.maxsize))
    quality = measure(reference, engine, corpus.windows(exam.window, exam.tokens), exam, corpus.sha256)
    few = corpus.windows(exam.window, min(exam.tokens or INSIDE_TOKENS, INSIDE_TOKENS), batch=1)
    inside = measure_agreement(captured, program, (text_inputs(captured.inputs, ids) for ids in few))
    return replace(quality, agreement=inside, source_bytes=source.size_bytes)


def require_same_text(quality: Quality) -> None:
    """Raise M106 when the text is not the one that an engine was judged on."""
    from hashlib import sha256

    path = Path(quality.exam.text)
    if not path.is_file() or sha256(path.read_bytes()).hexdigest() != quality.sha256:
        raise MoecError("M106", "the text that the engine was judged on has changed, or is missing", str(path), "compile it anew instead of --from")


def allowed(precision: torch.dtype, asked: float | None, exam: Exam | None, approximate: bool) -> Tolerance:
    """What an engine's outputs may deviate: what was asked for, else the precision's own; after approximate passes, their budget, in whose
    place stands the exam's where it sets one."""
    if asked is None and approximate and exam is not None and exam.bounded:
        asked = BUDGET_ON_TEXT
    return Tolerance(asked) if asked is not None else Tolerance.of(precision, approximate)
