"""Check: a decoder's cache makes no difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.execution.streaming import StreamingEngine
from moec.program.decoder_signature import cache_inputs
from moec.program.moe_call import moe_nodes
from moec.proof.cache_consistency import SIZES, Consistency, calls, check_consistency
from moec.proof.checks.check import Check, Figure
from moec.proof.decided_tokens import NOISE, Decided, is_half
from moec.proof.digits import at_most
from moec.proof.inputs import decided_sample, most_decided
from moec.proof.trial import Trial

SEED = 7  # added to the proof's: another text than those that are compared


@dataclass(frozen=True)
class CacheConsistency(Check):
    """One text in one go, in chunks and token by token; see `moec.proof.cache_consistency`."""

    consistency: Consistency

    name: ClassVar[str] = "cache"
    title: ClassVar[str] = "A decoder's cache"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        """Of a decoder that takes the text; in half precision once more on tokens that are decided, when it fails on
        the whole. Passes change nothing here: the engine is compared with itself, or with its own program."""
        subject, engine = trial.subject, trial.engine
        if not cache_inputs(engine.inputs) or not all(engine.holds(sizes) for sizes in calls()):
            return None
        program, source, seed = subject.program, subject.source, subject.seed + SEED
        tolerance = subject.lowering_tolerance if program.approximate else subject.tolerance
        assert tolerance is not None  # a text decides after approximate passes only
        rounding = subject.precision if subject.kernel_deviation is None else None
        peer = StreamingEngine(program) if program.by_call else None
        try:
            found = check_consistency(engine, decided_sample(program, source, SIZES, seed), tolerance, peer)
        except MoecError as error:
            what = f"{engine.name} cannot take a text in chunks and token by token: {error.what}"
            raise MoecError("M101", what, error.where, "compile with --no-cache, or report this") from error
        if found.ok or not is_half(rounding) or not moe_nodes(program):
            return cls(found)
        sample, part = most_decided(program, source, SIZES, subject.precision, seed)
        decided = Decided(str(subject.precision)[6:], NOISE[subject.precision], part.count, part.total)
        return cls(check_consistency(engine, sample, tolerance, peer, part, decided))

    def error(self) -> MoecError | None:
        return self.consistency.error()

    @property
    def note(self) -> str:
        title = self.consistency.title
        return f"{title[0].upper()}{title[1:].removesuffix(':').removesuffix(' and as')}."

    def figures(self) -> tuple[Figure, ...]:
        found = self.consistency
        ways = [
            Figure(
                way.name,
                {"max|d|/std": f"{way.deviation:.2e}", "allowed": f"{found.tolerance:g}"},
                at_most(way.deviation, found.tolerance),
            )
            for way in found.ways
        ]
        if found.decided is not None:
            said = found.decided.problem or str(found.decided)
            ways.append(Figure("tokens", {"compared": said}, not found.decided.problem))
        return tuple(ways)

    def __str__(self) -> str:
        return f"{self.consistency.title} {self.consistency}"
