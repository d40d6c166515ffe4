"""What to do about approximate passes that cost too much: which layer costs most, and settings that were tried.

Advice that nobody tried is a guess. So where a model is small, each quantized layer is put back as it was, and the
settings that the passes call milder are run, all judged as the pipeline was. Of a large model they are only named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from torch import fx

from moec.compiler.options import Options
from moec.compiler.proving import contract_samples
from moec.errors import MoecError
from moec.execution.engine import EagerEngine, Engine
from moec.execution.streaming import StreamingEngine
from moec.frontend.source import Source
from moec.pipeline.calibration import Calibration
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.program.signature import Sample
from moec.proof.budgets import OverBudget, budget_of
from moec.proof.compare import Tolerance, compare
from moec.proof.exam import Exam
from moec.proof.own_text import OwnText, judge, write_own_text
from moec.proof.quality import measure
from moec.proof.subject import yardstick
from moec.proof.weight_error import packed_nodes, source_of
from moec.text.corpus import Corpus

SMALL_BYTES = 2**27  # of weights: a try takes seconds
_WANTED, _TEXT_TOKENS = 2, 2048
_LAYER = re.compile(r"^(?:.*?\.)?\d+(?=\.|$)")


@dataclass(frozen=True)
class Finding:
    """What a quick look at a program found: the figure that decides, whether it is allowed, and its name."""

    figure: float
    ok: bool
    name: str


Look = Callable[[Program], Finding]


@contextmanager
def advice_for(
    source: Source, captured: Program, options: Options, calibration: Calibration | None, corpus: Corpus | None
) -> Iterator[None]:
    """Raise what the block raises; an error about the budget of approximate passes with advice, see `advised`."""
    try:
        yield
    except OverBudget as error:
        try:
            better = advised(error, source, captured, options, calibration, corpus)
        except Exception:  # advice that cannot be made must not hide what it was about
            raise error from None
        raise better from error


def advised(
    error: OverBudget,
    source: Source,
    captured: Program,
    options: Options,
    calibration: Calibration | None = None,
    corpus: Corpus | None = None,
) -> MoecError:
    """The same error, with a way out that says which layer costs most and which settings would pass.

    Args:
        captured: the untouched program. calibration, corpus: as the compile had them.
    """
    if not any(item.contract_of() == "approximate" for item in options.pipeline):
        return error
    candidates = list(_milder(options.pipeline))
    if options.verify == "streamed" or sum(w.size_bytes for w in captured.weights.values()) > SMALL_BYTES:
        named = ", or ".join(str(p) for p in candidates[-_WANTED:])
        return _with(error, f"try {named} (not tried here, the model being large)" if named else "")
    look = _look(source, captured, options, corpus)
    context = Context(options.seed, calibration=calibration, max_kl=options.max_kl)
    try:
        layer = _costliest(options.pipeline.run(captured, context)[0], captured, look)
    except MoecError:  # what cannot be run again says nothing of its layers
        layer = ""
    return _with(error, "; ".join(filter(None, (layer, _tried(candidates, captured, options, calibration, look)))))


def _with(error: OverBudget, advice: str) -> MoecError:
    return MoecError(error.code, error.what, error.where, f"{advice}; or {error.fix}" if advice else error.fix)


# ---------------------------------------------------------------------- how a program is judged
def _look(source: Source, captured: Program, options: Options, corpus: Corpus | None) -> Look:
    """The proof's own yardstick, on the program in PyTorch."""
    reference, by = source.reference(), yardstick(captured, options.tolerance, options.exam)
    if by == "text" and options.exam is not None and corpus is not None:
        short = replace(options.exam, tokens=min(options.exam.tokens or _TEXT_TOKENS, _TEXT_TOKENS))
        return partial(_read, reference, corpus, short)
    if by == "own text":
        text = write_own_text(reference, source, options.seed, StreamingEngine(captured).holds)
        return partial(_continue, reference, text, options.max_kl)
    asked = None if options.tolerance is None else Tolerance(options.tolerance)
    return partial(_differ, reference, contract_samples(source, captured, options.seed)[0], asked)


def _read(reference: Engine, corpus: Corpus, exam: Exam, program: Program) -> Finding:
    found = measure(reference, EagerEngine(program), corpus.windows(exam.window, exam.tokens), exam)
    return Finding(found.kl_mean, found.ok, "nats a token")


def _continue(reference: Engine, text: OwnText, max_kl: float | None, program: Program) -> Finding:
    found = judge(reference, EagerEngine(program), text, budget_of(program.history, max_kl))
    return Finding(found.kl_mean, found.ok, "nats a token")


def _differ(reference: Engine, sample: Sample, asked: Tolerance | None, program: Program) -> Finding:
    found = compare(reference, EagerEngine(program), [sample], asked or Tolerance.of_passes(program.history))
    figure, name = (found.worst.deviation, "max |d|/std") if asked else (found.worst.rms, "rms(d)/std")
    return Finding(figure, found.ok, name)


# ---------------------------------------------------------------------- which layer
def _costliest(program: Program, captured: Program, look: Look) -> str:
    """The layer without whose quantization the figure falls most; empty where nothing is quantized."""
    groups: dict[str, list[fx.Node]] = {}
    for name, node in packed_nodes(program).items():
        if source_of(program, node, name, captured.weights) is not None:
            groups.setdefault(_layer(name, node), []).append(node)
    if len(groups) < 2:
        return ""
    whole = look(program)
    left = {layer: look(_restored(program, nodes, captured)).figure for layer, nodes in groups.items()}
    layer = min(left, key=lambda name: left[name])
    return f"most of it comes from {layer}: {whole.figure:.2g} {whole.name}, {left[layer]:.2g} with that left as it is"


def _layer(name: str, node: fx.Node) -> str:
    """The numbered layer around a weight, else the weight."""
    for text in (name, *(module_path(user) for user in node.users)):
        if found := _LAYER.match(text):
            return found[0]
    return name


def _restored(program: Program, nodes: list[fx.Node], captured: Program) -> Program:
    """A copy in which some packed weights are what they stand for."""
    names = {n.name for n in nodes}
    copy = program.clone()
    for name, node in packed_nodes(copy).items():
        weight = source_of(copy, node, name, captured.weights) if node.name in names else None
        if weight is not None:
            with copy.graph.inserting_before(node):
                node.replace_all_uses_with(copy.read_weight(copy.add_weight(f"{name}_untouched", weight)))
            copy.graph.erase_node(node)
    copy.drop_unused_weights()
    copy.finish()
    return copy


# ---------------------------------------------------------------------- which settings
def _milder(pipeline: Pipeline) -> Iterator[Pipeline]:
    """The pipeline with one pass at a time replaced by a milder one."""
    for k, item in enumerate(pipeline):
        for other in item.milder():
            yield replace(pipeline, passes=(*pipeline.passes[:k], other, *pipeline.passes[k + 1 :]))


def _tried(
    candidates: list[Pipeline], captured: Program, options: Options, calibration: Calibration | None, look: Look
) -> str:
    """The first settings that pass, and what they come to; else what was tried in vain."""
    good, bad = list[str](), list[str]()
    for pipeline in candidates:
        try:
            program, _ = pipeline.run(captured, Context(options.seed, calibration=calibration, max_kl=options.max_kl))
            found = look(program)
        except MoecError:  # settings that don't fit this model
            continue
        said = f"{pipeline} ({found.figure:.2g} {found.name})"
        (good if found.ok else bad).append(said)
        if len(good) == _WANTED:
            break
    if good:
        return f"tried, and within the budget: {', or '.join(good)}"
    return f"tried, and not enough either: {', '.join(bad)}" if bad else ""
