"""Check: a decoder's cache makes no difference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.execution.streaming import StreamingEngine
from moec.program.decoder_signature import PAST, SEQUENCE, cache_inputs, fixed_inputs
from moec.program.encoder_decoder import is_cross_decoder
from moec.program.moe_call import moe_nodes
from moec.program.signature import Sample
from moec.proof.cache_consistency import (
    ONE_GO,
    PADDED,
    SHORT,
    Consistency,
    Text,
    Way,
    check_consistency,
    moves,
    one_by_one,
    shorter_texts,
    text_past,
)
from moec.proof.checks.check import Check, Figure
from moec.proof.chosen_keys import key_choices
from moec.proof.compare import Tolerance
from moec.proof.decided_tokens import NOISE, ComparedTokens, Decided, is_half
from moec.proof.digits import at_most
from moec.proof.evidence import EDGE, OUTSIDE, most_held, size_plan
from moec.proof.inputs import decided_sample, most_decided
from moec.proof.sizes import Beyond
from moec.proof.subject import Subject
from moec.proof.trial import Trial
from moec.shown import figure_of

SEED = 7  # added to the proof's: another text than those that are compared


@dataclass(frozen=True)
class CacheConsistency(Check):
    """One text in one go, in chunks and token by token, then longer ones past each window, and with a
    recurrent state one of many single tokens; see `moec.proof.cache_consistency`.

    Attributes:
        consistency: of all texts.
        beyond: long texts that were left out, and why.
    """

    consistency: Consistency
    beyond: tuple[Beyond, ...] = ()

    name: ClassVar[str] = "cache"
    title: ClassVar[str] = "A decoder's cache"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        """Of a decoder that takes the text; in half precision once more on tokens that are decided, when it fails on
        the whole. Passes change nothing here: the engine is compared with itself, or with its own program."""
        short = next((text for text in (SHORT, *shorter_texts()) if _held(trial, text)), None)
        inputs = trial.engine.inputs
        if not cache_inputs(inputs) or is_cross_decoder(inputs) or short is None:  # `moec.proof.encoder_decoder` has it
            return None
        found, beyond = _fed(trial, short), list[Beyond]()
        plan = trial.once(size_plan)
        longest = most_held(trial, {**SHORT.sizes, "batch": 2, SEQUENCE: plan.context, PAST: 0}, SEQUENCE)[SEQUENCE]
        texts = [text_past(bound, longest) for bound in dict.fromkeys(min(n, longest) for n in plan.cached)]
        if fixed_inputs(inputs) and longest > SHORT.sizes[SEQUENCE]:
            texts.append(one_by_one(longest))
        for text in texts:
            why = _left_out(trial, text)
            more = None if why else _fed(trial, text)
            if more is not None and more.decided is not None and more.decided.problem:
                why, more = EDGE, None
            beyond += [Beyond(f"a text of {text.sizes[SEQUENCE]:,} tokens in pieces", why)] if why else []
            found = replace(found, ways=(*found.ways, *more.ways)) if more else found
        return cls(found, tuple(beyond))

    def error(self) -> MoecError | None:
        return self.consistency.error()

    def turned_by(self, subject: Subject) -> tuple[str, ...]:
        """After approximate passes, the engine is held to its own program, by rounding alone."""
        if not all(math.isfinite(way.deviation) for way in self.consistency.ways):
            return ()
        return ("target",) if subject.program.approximate else ("tolerance", "target")

    @property
    def note(self) -> str:
        title = self.consistency.title
        return f"{title[0].upper()}{title[1:].removesuffix(':').removesuffix(' and as')}."

    def figures(self) -> tuple[Figure, ...]:
        found = self.consistency
        ways = [
            Figure(
                way.name,
                {"max|d|/std": f"{way.deviation:.2e}", "allowed": figure_of(found.tolerance)}
                | ({"compared": f"all but {way.left_out}"} if way.left_out else {}),
                at_most(way.deviation, found.tolerance),
            )
            for way in found.ways
        ]
        if found.decided is not None:
            said = found.decided.problem or str(found.decided)
            ways.append(Figure("tokens", {"compared": said}, not found.decided.problem))
        left = [Figure(b.what, {"compared": f"not proven: {b.why}"}, None) for b in self.beyond]
        return (*ways, *left)

    def __str__(self) -> str:
        return f"{self.consistency.title} {self.consistency}"


def _held(trial: Trial, text: Text) -> bool:
    return all(trial.engine.holds(sizes) for sizes in text.every_call())


def _left_out(trial: Trial, text: Text) -> str:
    """Why a long text is not fed to an engine; empty when it is."""
    if not _held(trial, text):
        return OUTSIDE
    half = is_half(trial.subject.precision) and moe_nodes(trial.subject.program)
    return f"in half precision, {EDGE}" if half else ""


def _fed(trial: Trial, text: Text) -> Consistency:
    """One text in its ways. Those that differ, each call beside the same call of the model, which may say something
    else itself when a text is cut (a rotary embedding that changes with the length); and where two runs may choose
    other experts, on decided tokens. Raises M101 where the engine does not take the text."""
    subject = trial.subject
    program, source, seed = subject.program, subject.source, subject.seed + SEED
    rounding = subject.precision if subject.kernel_deviation is None else None
    found = _consistent(trial, text, decided_sample(program, source, text.sizes, seed))
    keys, long = bool(key_choices(program)), text.sizes[SEQUENCE] > SHORT.sizes[SEQUENCE]
    if found.ok or not (keys or (moe_nodes(program) and (is_half(rounding) or long))):
        return found
    sample, part = most_decided(program, source, text.sizes, subject.precision, seed)
    what = "keys" if keys else "experts"
    decided = Decided(str(subject.precision)[6:], NOISE[subject.precision], part.count, part.total, what=what)
    return _consistent(trial, text, sample, part, decided)


def _consistent(
    trial: Trial, text: Text, sample: Sample, part: ComparedTokens | None = None, decided: Decided | None = None
) -> Consistency:
    """One text in its ways, or what of it can be compared; once more beside the model where they differ."""
    subject, engine, program = trial.subject, trial.engine, trial.subject.program
    tolerance = subject.lowering_tolerance if program.approximate else subject.tolerance
    assert tolerance is not None  # a text decides after approximate passes only
    peer = StreamingEngine(program) if program.by_call else None
    try:
        found = check_consistency(
            engine, sample, tolerance, peer, part, decided, text, untouched=lambda: trial.untouched
        )
    except MoecError as error:
        what = f"{engine.name} cannot take a text in chunks and token by token: {error.what}"
        raise MoecError("M101", what, error.where, "compile with --no-cache, or report this") from error
    if found.ok or peer is not None or not found.failed:
        return found
    failed = found.failed
    if program.approximate:
        failed = _moved(trial, sample, found, part, text)
    if not failed:
        return found
    model = StreamingEngine(program) if program.approximate or subject.streamed else trial.reference
    ways = {ONE_GO: (text.sizes[SEQUENCE],), **{way.name: way.steps for way in failed}}
    again = check_consistency(
        engine, sample, tolerance, model, part, decided, ways=ways, untouched=lambda: trial.untouched
    )
    return _with(found, again) if again.ok else found


def _moved(
    trial: Trial, sample: Sample, found: Consistency, part: ComparedTokens | None, text: Text
) -> tuple[Way, ...]:
    """The ways that failed in which the untouched model itself says something else. In the others passes made it so,
    and that their program says the same in the same calls is no excuse. A way that ends early goes on token by token;
    padding between the tokens is no cut."""
    length, failed = text.sizes[SEQUENCE], [way for way in found.failed if way.name != PADDED]
    calls = {f"calls of {way.name}": (*way.steps, *[1] * (length - sum(way.steps))) for way in failed}
    if not calls:
        return ()
    bound = Tolerance(found.tolerance)
    own = check_consistency(trial.untouched, sample, bound, compared=part, text=text, ways=calls).ways
    return tuple(way for way, alone in zip(failed, own, strict=True) if moves(alone.deviation, found.tolerance))


def _with(found: Consistency, again: Consistency) -> Consistency:
    """The ways that were compared, those that were compared again in the place of the ones that failed."""
    beside = {way.name: replace(way, name=f"{way.name}, each call beside the model's") for way in again.ways}
    ways = {**{way.name: way for way in found.ways}, **beside}
    return replace(found, ways=tuple(ways.values()))
