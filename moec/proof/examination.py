"""An engine is examined on a text: windows of it through the untouched model and the engine, and a few through the
programs behind them."""

from __future__ import annotations

from dataclasses import replace

from moec.execution.engine import Engine
from moec.program.decoder_signature import text_inputs
from moec.program.program import Program
from moec.proof.agreement import measure_agreement
from moec.proof.damage_by_cause import measure_shift
from moec.proof.exam import Exam
from moec.proof.quality import Quality, measure
from moec.text.corpus import Corpus

INSIDE_TOKENS = (
    2048  # of the text, for choices of experts and errors of layers: runs in PyTorch that read every weight anew
)


def examine(
    exam: Exam, corpus: Corpus, reference: Engine, engine: Engine, captured: Program, program: Program
) -> Quality:
    """Judge an engine.

    Args:
        exam, corpus: the text, and its tokens.
        reference, engine: whose logits are compared.
        captured, program: whose insides are: the graph of the reference, and the one that the engine was built from.
    """
    quality = measure(reference, engine, corpus.windows(exam.window, exam.tokens), exam, corpus.sha256)
    few = list(corpus.windows(exam.window, min(exam.tokens or INSIDE_TOKENS, INSIDE_TOKENS), batch=1))
    inside = measure_agreement(captured, program, (text_inputs(captured.inputs, ids) for ids in few))
    shift = measure_shift(captured, program, few) if program.approximate else None
    return replace(quality, agreement=inside, shift=shift)
