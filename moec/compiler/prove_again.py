"""An engine that exists already: prove it again, or find the step at which it departs from the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moec.compiler.companions import require_companions
from moec.compiler.engine_folder import EngineFolder
from moec.compiler.open import open_source
from moec.compiler.parts import is_in_parts, prove_parts_again, refuse_parts
from moec.compiler.proving import fitting_exam, require_text_for
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.streaming import StreamingEngine
from moec.files.kept import unused
from moec.frontend.in_memory import is_in_memory
from moec.frontend.source import Source
from moec.layouts import model_folder
from moec.pipeline.hooks import RecordHook
from moec.program.program import Program
from moec.program.signature import Sample
from moec.proof.bisection import Bounds, Divergence, bisect
from moec.proof.budgets import budget_of
from moec.proof.checks.own_text import own_text
from moec.proof.checks.weights import QuantizedWeights
from moec.proof.compare import Tolerance, compare
from moec.proof.decided_tokens import ComparedTokens, is_half
from moec.proof.evidence import Evidence, all_tokens, compared, decided_tokens
from moec.proof.exam import Exam
from moec.proof.own_text import judge
from moec.proof.quality import measure
from moec.proof.subject import Subject
from moec.proof.trial import Trial
from moec.proof.verification import Verification, prove
from moec.report.artefacts import MANIFEST
from moec.text.corpus import corpus_of

BISECTED_SIZES = 2  # every step of the compile is run on each input


@dataclass(frozen=True)
class Question:
    """What the command asks of a later proof.

    Attributes:
        seed: of the inputs.
        tolerance: the max |d|/std that is allowed; moec's own bounds when None.
        exam: a text; the compile's own when None and nothing else is compared with.
        max_kl: the mean KL divergence that is allowed, on the model's own text where there is no other.
    """

    seed: int = 1
    tolerance: float | None = None
    exam: Exam | None = None
    max_kl: float | None = None


@unused()
def prove_again(folder: Path, against: Any, asked: Question, opening: Mapping[str, Any]) -> Verification:
    """Prove an engine with the checks of its compile, on other inputs. Bounds are the command's or moec's own, see
    `moec.proof.checks.bounds`. Quantized weights are computed anew: the engine may have been made of kept ones, and
    these are what is in question.

    Args:
        folder: what `compile` wrote.
        against: None for its own source; else another engine's folder, or another model. Of an engine whose model was
            made in memory, that model.
        opening: arguments of `open_source`.
    """
    engine_folder = EngineFolder(folder, opening)
    own = engine_folder.own(against)
    require_companions(folder, own)
    if is_in_parts(engine_folder.report):
        return _prove_parts(engine_folder, own, against, asked, opening)
    captured, program = engine_folder.remake(own)
    if _is_engine(against):
        other = EngineFolder(Path(against), opening)
        with other.opened() as reference:
            theirs = other.remake(other.source())[1]
            subject = replace(
                engine_folder.subject(own, theirs, program), against=reference, source_bytes=other.size_bytes, exam=None
            )
            return _prove(engine_folder, subject, asked)
    if against is None or is_in_memory(own.hashes):
        return _prove(engine_folder, engine_folder.subject(own, captured, program), asked)
    recorded = {name: value for name, value in engine_folder.report.opening.items() if name == "cache"}
    source = open_source(against, **{**opening, **recorded})  # an engine without a cache has no inputs for one
    before, twin = _compiled_alike(engine_folder, source)
    return _prove(engine_folder, replace(engine_folder.subject(source, before, program), twin=twin, exam=None), asked)


def _prove_parts(
    engine_folder: EngineFolder, own: Source, against: Any, asked: Question, opening: Mapping[str, Any]
) -> Verification:
    """Each part, and all together, against the engine's own model. Raises M201 for a comparison with another."""
    if against is not None and not is_in_memory(own.hashes):
        refuse_parts(engine_folder.report, "verify", "--against OTHER/{part}")
    report, options = engine_folder.report, engine_folder.options

    def one(part: Path) -> Verification:
        return prove_again(part, against, asked, opening)

    return prove_parts_again(engine_folder.folder, report, options, own, asked.seed, one)


def _compiled_alike(engine_folder: EngineFolder, source: Source) -> tuple[Program, Program | None]:
    """Another model's captured program, and what the engine would be built from if it were its model; None where the
    passes do not fit it."""
    try:
        return engine_folder.remake(source)
    except MoecError:  # one that cannot be captured at all says so now
        return source.capture(engine_folder.backend.precision(engine_folder.target)), None


def _prove(engine_folder: EngineFolder, subject: Subject, asked: Question) -> Verification:
    subject = asked_subject(engine_folder, subject, asked)
    with engine_folder.opened() as engine:
        proof = prove(subject, engine)
    subject.source.require_unchanged()
    return replace(proof, checks=(*proof.checks, *engine_folder.lost_checks(proof)))


def asked_subject(engine_folder: EngineFolder, subject: Subject, asked: Question) -> Subject:
    """What is to be proven, with the bounds and the text that the command asks for."""
    source, exam = subject.source, _exam(engine_folder, subject, asked)
    corpus = corpus_of(exam.text, source, model_folder(engine_folder.folder)) if exam else None
    found = replace(
        subject,
        seed=asked.seed,
        asked=asked.tolerance,
        max_kl=asked.max_kl if asked.exam is None else None,
        exam=fitting_exam(exam, source),
        exam_decides=asked.exam is not None and asked.exam.bounded,
        corpus=corpus,
        tighter=None if asked.tolerance is not None else subject.tighter,
        looser=tuple(b for b in subject.looser if not _said(asked, b.name)),
    )
    max_kl = found.max_kl if asked.tolerance is None and exam is None else None
    require_text_for(max_kl, found.judged_by, found.program.approximate, source.text)
    return found


def _exam(engine_folder: EngineFolder, subject: Subject, asked: Question) -> Exam | None:
    """The text that is given, with the recorded budget unless it has one itself; else the recorded text."""
    recorded = subject.exam
    if asked.exam is None:
        if recorded is not None:
            engine_folder.require_same_text()
        return recorded if recorded is None or asked.max_kl is None else replace(recorded, max_kl=asked.max_kl)
    if asked.exam.bounded or recorded is None:
        return asked.exam
    return replace(asked.exam, max_kl=recorded.max_kl, max_perplexity_ratio=recorded.max_perplexity_ratio)


def _said(asked: Question, name: str) -> bool:
    """Whether the command itself says what a bound is to be."""
    return any(getattr(place, name, None) is not None for place in (asked, asked.exam))


def _is_engine(thing: Any) -> bool:
    return isinstance(thing, str | Path) and (Path(thing) / MANIFEST).is_file()


@unused()
def bisect_engine(folder: Path, asked: Question, opening: Mapping[str, Any], model: Any = None) -> Divergence:
    """The first pass or step of the lowering, layer and expert at which an engine's making departs from the untouched
    model; on the inputs, and by the bounds, of a proof that asks for the same (`prove_again`).

    An exact step is held to the step before it, by rounding, or by what is asked for now; approximate ones to their
    budget, all of them together, and their weights to the errors of a grid. What a backend made of them is held to the
    last program. `model`: the engine's own, or where it lies, if not where the manifest says.
    """
    engine_folder, record = EngineFolder(folder, opening), RecordHook()
    refuse_parts(engine_folder.report, "verify", "--bisect")
    source = engine_folder.given(model)
    captured, program = engine_folder.remake(source, (record,))
    programs = record.programs or [("capture", captured)]
    subject = asked_subject(engine_folder, engine_folder.subject(source, captured, program), asked)
    with engine_folder.opened() as engine:
        lowering = engine_folder.backend.stages(
            program, engine_folder.target, str(engine_folder.report.settings["optimize_for"])
        )
        return _bisect(Trial(subject, engine, BISECTED_SIZES), programs, engine, lowering)


def _judge(trial: Trial) -> Callable[[Program], str] | None:
    """What of a program breaks the errors of a grid, or the budget on a text where one decides, in words; None where no
    pass is approximate."""
    subject = trial.subject
    if not subject.program.approximate:
        return None

    def problems(program: Program) -> str:
        weights = QuantizedWeights.of(program, subject.captured)
        wrong = weights.error() if weights else None
        if wrong:
            return f"{wrong.where}: {wrong.what}"
        return "" if subject.judged_by == "outputs" else "; ".join(_quality_problems(trial, program))

    return problems


def _quality_problems(trial: Trial, program: Program) -> tuple[str, ...]:
    """What a program breaks of the budget on the text that decides: the given one, or the model's own."""
    subject, engine = trial.subject, StreamingEngine(program)
    if subject.judged_by == "own text":
        return judge(trial.reference, engine, trial.once(own_text), budget_of(program.history, subject.max_kl)).problems
    assert subject.exam is not None and subject.corpus is not None
    windows = subject.corpus.windows(subject.exam.window, subject.exam.tokens)
    return measure(trial.reference, engine, windows, subject.exam).problems


def _bisect(
    trial: Trial, programs: list[tuple[str, Any]], engine: Engine, lowering: Iterator[tuple[str, Engine]]
) -> Divergence:
    subject, evidence = trial.subject, trial.once(compared)[0]  # what the proof compares
    if is_half(subject.precision) and evidence.coverage.counted:  # each stage may round differently
        found = trial.once(decided_tokens)
        evidence = trial.once(all_tokens) if found.decided and found.decided.problem else found
    bounds = Bounds(
        judge=_judge(trial),
        exact=subject.lowering_tolerance if subject.program.approximate else subject.tolerance or Tolerance(0.0),
        budget=subject.tolerance if subject.program.approximate else None,
        lowering=subject.lowering_tolerance if subject.program.approximate else None,
    )
    samples, tokens = _telling(trial, evidence)
    return bisect(trial.reference, programs, samples, bounds, engine, tokens, lowering)


def _telling(trial: Trial, evidence: Evidence) -> tuple[list[Sample], list[ComparedTokens | None] | None]:
    """The inputs to run every step on, and what of them the proof compares: of the long ones, only that on which the
    engine is worst."""
    parts: Sequence[ComparedTokens | None] = evidence.compared or [None for _ in evidence.whole]
    pairs = list(zip(evidence.whole, parts, strict=True))

    def deviation(pair: tuple[Sample, ComparedTokens | None]) -> float:
        return compare(trial.reference, trial.engine, [pair[0]], Tolerance(0.0), [pair[1]]).worst.deviation

    count = len(evidence.samples)
    kept = [*pairs[:count], *([max(pairs[count:], key=deviation)] if pairs[count:] else [])]
    return [sample for sample, _ in kept], [part for _, part in kept] if evidence.compared else None
