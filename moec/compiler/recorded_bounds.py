"""The bounds that a manifest records, beside moec's own: which ask for more, and which for less."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from moec.compiler.options import Options
from moec.proof.budgets import budget_of
from moec.proof.compare import Tolerance
from moec.proof.exam import Exam
from moec.proof.recorded_bound import RecordedBound
from moec.proof.subject import Subject
from moec.shown import figure_of
from moec.targets.target import Target


@dataclass(frozen=True)
class Recorded:
    """What a later proof makes of them.

    Attributes:
        options: as the manifest has them. target: with what the engine's files show of it (`Backend.shown`).
        subject: what is to be proven, without any recorded bound.
    """

    options: Options
    target: Target
    subject: Subject

    @property
    def tighter(self) -> float | None:
        """The recorded bound on max |d|/std, where it is no looser than moec's."""
        asked = self.options.tolerance
        return asked if asked is not None and asked <= self._tolerance else None

    @property
    def exam(self) -> Exam | None:
        """The recorded text, with budgets no looser than moec's."""
        found = self.options.exam
        if found is None:
            return None
        kl, ratio = found.max_kl, found.max_perplexity_ratio
        return replace(
            found,
            max_kl=None if kl is None else min(kl, self._max_kl),
            max_perplexity_ratio=None if ratio is None else min(ratio, self._ratio),
        )

    @property
    def looser(self) -> tuple[RecordedBound, ...]:
        """What asks for less."""
        return tuple(self._looser())

    def _looser(self) -> Iterator[RecordedBound]:
        options, claimed = self.options, self.options.target.options
        pairs = (
            ("tolerance", options.tolerance, self._tolerance),
            ("max_kl", options.max_kl, self._max_kl),
            ("max_perplexity_ratio", options.max_perplexity_ratio, self._ratio),
        )
        for name, recorded, own in pairs:
            if recorded is not None and recorded > own:
                yield RecordedBound(name, figure_of(recorded), f"{own:.4g}", self._flags(name, recorded))
        for name in sorted(set(claimed) - set(self.target.options)):
            yield RecordedBound(f"target {name}={claimed[name]}", "claimed", "the engine's files show none")

    def _flags(self, name: str, recorded: float) -> str:
        """What accepts a bound on the command; one of perplexities needs its text there, too."""
        short = f"{recorded:g}"
        flag = f"--{name.replace('_', '-')} {short if float(short) == recorded else repr(recorded)}"
        exam = self.options.exam
        if name != "max_perplexity_ratio" or exam is None:
            return flag
        sizes = {"tokens": exam.tokens, "window": exam.window}
        given = "".join(f" --{key} {n}" for key, n in sizes.items() if n != getattr(Exam, key))
        return f"--text {shlex.quote(exam.text)}{given} {flag}"

    @property
    def _tolerance(self) -> float:
        """What may differ by default; of approximate passes the root mean square, which the largest difference, that
        a tolerance bounds, is never below."""
        precision = self.subject.precision
        program = self.subject.program
        return Tolerance.of_passes(program.history).rms if program.approximate else Tolerance.of(precision).deviation

    @cached_property
    def _max_kl(self) -> float:
        return budget_of(self.subject.program.history).max_kl

    @property
    def _ratio(self) -> float:
        """Of perplexities: what a loss of as many nats a token makes of it."""
        return math.exp(self._max_kl)
