"""Prove an engine: every check of `moec.proof.checks`, one verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.proof.checks.assumed import Assumed
from moec.proof.checks.cache import CacheConsistency
from moec.proof.checks.capture import Capture
from moec.proof.checks.check import Check
from moec.proof.checks.decided import DecidedTokens
from moec.proof.checks.experts import ExpertsReached
from moec.proof.checks.lowering import Lowering
from moec.proof.checks.outputs import Outputs
from moec.proof.checks.recorded import RecordedCheck
from moec.proof.checks.sizes import SizesRun
from moec.proof.checks.text import TextQuality
from moec.proof.compare import Comparison
from moec.proof.coverage import Coverage
from moec.proof.quality import Quality
from moec.proof.subject import Subject
from moec.proof.trial import Trial

# in the order in which failures are reported: of what few tokens say, a difference is no finding either, and a wrong
# lowering makes outputs wrong, too
CHECKS: tuple[type[Check], ...] = (
    Assumed, SizesRun, DecidedTokens, Capture, Lowering, Outputs, CacheConsistency, ExpertsReached, TextQuality,
)  # fmt: skip
GROUP = "moec.checks"  # entry points of other packages: a name and a `Check`

C = TypeVar("C", bound=Check)


@dataclass(frozen=True)
class Verification:
    """The proof of an engine, as plain data.

    Attributes:
        checks: what was looked at; one verdict follows from all.
        seed: of the inputs.
        reference: `full` or `streamed`, see `moec.proof.subject.Subject`; `engine` where another engine was compared
            with.
    """

    checks: tuple[Check, ...]
    seed: int = 0
    reference: str = "full"

    @property
    def ok(self) -> bool:
        """Whether every check is passed; a proof without any proves nothing."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def require(self) -> None:
        """Raise the error of the first check that failed."""
        for check in self.checks:
            check.require()

    def find(self, kind: type[C]) -> C | None:
        """The check of exactly this class, if it was made."""
        return next((check for check in self.checks if type(check) is kind), None)

    @property
    def comparison(self) -> Comparison:
        """Errors of each output beside the reference's. Raises M799 for a proof without."""
        return self._demand(Outputs).comparison

    @property
    def coverage(self) -> Coverage:
        """The experts that inputs reached; of none for a program without experts."""
        found = self.find(ExpertsReached)
        return found.coverage if found else Coverage((), self.comparison.samples, self.comparison.samples, 0, 0)

    @property
    def quality(self) -> Quality | None:
        """On a text, when one was given."""
        found = self.find(TextQuality)
        return found.quality if found else None

    def _demand(self, kind: type[C]) -> C:
        found = self.find(kind)
        if found is None:
            raise MoecError("M799", f"a proof without the check {kind.name!r}", "the proof", "report this")
        return found

    def __str__(self) -> str:
        found = self.find(Outputs)
        between = f": {found.comparison.candidate} against {found.comparison.reference}" if found else ""
        error = next((e for e in (check.error() for check in self.checks) if e), None)
        verdict = "DIFFERS" if error else "close" if self.find(Lowering) else "equal"
        lines = [f"{verdict}{between}", *(f"  {'ok  ' if c.ok else 'FAIL'} {c.name}: {c}" for c in self.checks)]
        return "\n".join([*lines, str(error)] if error else lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        checks = {check.name: check.to_dict() for check in self.checks}
        return {"ok": self.ok, "seed": self.seed, "reference": self.reference, "checks": checks}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verification:
        """The proof that `to_dict` wrote; its verdict is found anew. A check of a package that is not here is only
        shown, with the verdict that was recorded. Raises `msgspec.ValidationError` where the data has another form."""
        known = {check.name: check for check in all_checks()}
        found = [
            known[name].from_dict(entry) if name in known else RecordedCheck.of(name, entry)
            for name, entry in data["checks"].items()
        ]
        return cls(tuple(found), int(data["seed"]), str(data["reference"]))


def all_checks() -> tuple[type[Check], ...]:
    """moec's own checks, then those of other packages."""
    return (*CHECKS, *(entry.load() for entry in entry_points(group=GROUP)))


def prove(
    subject: Subject, engine: Engine, checks: Sequence[type[Check]] | None = None, until_failure: bool = False
) -> Verification:
    """Make every check on an engine.

    Args:
        subject: what the engine has to equal.
        engine: what is to be proven.
        checks: other ones than `all_checks()`.
        until_failure: make no more checks once one has failed.

    Raises:
        MoecError: M105 when the reference yields NaN or infinity, M204 when it runs at no size that was tried, M101
            when the engine does not, M211 when a text is to be judged on that the model cannot read.
    """
    trial, found = Trial(subject, engine), list[Check]()
    for check in all_checks() if checks is None else checks:
        try:
            made = check.measure(trial)
        except Exception:
            if all(c.ok for c in found):
                raise
            break  # an engine that failed already may fail in any way later
        found += [] if made is None else [made]
        if until_failure and made is not None and not made.ok:
            break
    reference = "engine" if subject.against is not None else subject.reference
    return Verification(tuple(found), subject.seed, reference)
