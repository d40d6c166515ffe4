"""Prove an engine: every check of `moec.proof.checks`, one verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.progress import Progress
from moec.proof.checks.assumed import Assumed
from moec.proof.checks.bounds import RecordedBounds
from moec.proof.checks.cache import CacheConsistency
from moec.proof.checks.capture import Capture
from moec.proof.checks.check import Check
from moec.proof.checks.company import Company
from moec.proof.checks.decided import DecidedTokens
from moec.proof.checks.experts import ExpertsReached
from moec.proof.checks.lowering import Lowering
from moec.proof.checks.outputs import Outputs
from moec.proof.checks.own_text import OwnTextQuality
from moec.proof.checks.proven_parts import ProvenParts
from moec.proof.checks.recorded import RecordedCheck
from moec.proof.checks.sight import Sight
from moec.proof.checks.sizes import SizesRun
from moec.proof.checks.text import TextQuality
from moec.proof.checks.values import Values
from moec.proof.checks.weights import QuantizedWeights
from moec.proof.compare import Comparison
from moec.proof.coverage import Coverage
from moec.proof.own_text import OwnQuality
from moec.proof.quality import Quality
from moec.proof.sizes import named
from moec.proof.subject import Subject
from moec.proof.trial import Trial
from moec.proof.where_run import WhereRun

# in the order in which failures are reported: of what few tokens say, a difference is no finding either, and a wrong
# lowering makes outputs wrong, too
CHECKS: tuple[type[Check], ...] = (
    ProvenParts, Assumed, SizesRun, DecidedTokens, Capture, QuantizedWeights, Lowering, Outputs, Sight,
    CacheConsistency, Company, ExpertsReached, Values, OwnTextQuality, TextQuality, RecordedBounds,
)  # fmt: skip
GROUP = "moec.checks"  # entry points of other packages: a name and a `Check`

_SHOWN = 100  # characters of conditions in a line

C = TypeVar("C", bound=Check)


@dataclass(frozen=True)
class Verification:
    """The proof of an engine, as plain data.

    Attributes:
        checks: what was looked at; one verdict follows from all.
        seed: of the inputs.
        reference: `full` or `streamed`, see `moec.proof.subject.Subject`; `engine` where another engine was compared
            with.
        target, ran_on: where the engine is to run, and what ran it for the proof; empty where nobody said.
    """

    checks: tuple[Check, ...]
    seed: int = 0
    reference: str = "full"
    target: str = ""
    ran_on: str = ""

    @property
    def ok(self) -> bool:
        """Whether every check is passed; a proof without any proves nothing."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def error(self) -> MoecError | None:
        """The error of the first check that failed; None when all are passed."""
        return next((error for error in (check.error() for check in self.checks) if error), None)

    def require(self) -> None:
        """Raise the error of the first check that failed."""
        for check in self.checks:
            check.require()

    def find(self, kind: type[C]) -> C | None:
        """The check of exactly this class, if it was made."""
        return next((check for check in self.checks if type(check) is kind), None)

    @property
    def proven_on_target(self) -> bool:
        """Whether what ran is what the engine is for: an engine for a GPU that a CPU ran has not run on its
        hardware."""
        return self.where_run.on_target

    @property
    def where_run(self) -> WhereRun:
        """Where the engine is to run, and what ran it."""
        return WhereRun(self.target, self.ran_on)

    @property
    def verdict(self) -> str:
        """`verified` of an engine that ran on what it is for, `proven on the CPU, not yet run on tensorrt:sm90` of one
        that did not, `DIFFERS` of one that failed."""
        return self.where_run.verdict if self.ok else "DIFFERS"

    @property
    def elsewhere(self) -> str:
        """`the CPU (onnxruntime), not yet run on onnxruntime:cuda`, empty where it ran on its target."""
        return self.where_run.elsewhere

    @property
    def limits(self) -> str:
        """What the engine was made for, and sizes that it refuses and the model takes, in words; empty where there are
        none."""
        found, assumed = self.find(SizesRun), self.find(Assumed)
        sizes = " or ".join(named(r.sizes) for r in found.refused) if found else ""
        made_for = " and ".join(assumed.sizes) if assumed else ""
        shown = made_for if len(made_for) <= _SHOWN else f"{made_for[:_SHOWN]}…"
        return "; ".join((f"only where {shown}",) * bool(shown) + (f"cannot run at {sizes}",) * bool(sizes))

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

    @property
    def own_quality(self) -> OwnQuality | None:
        """On texts that the untouched model writes itself, where these decide."""
        found = self.find(OwnTextQuality)
        return found.quality if found else None

    @property
    def short(self) -> list[str]:
        """What was found, in phrases that fit in a line together: what decides first, and outputs only where they
        decide. All the rest stands in the checks."""
        found, own = self.comparison, self.own_quality
        decides = found.tolerance is not None or found.max_rms is not None
        outputs = [found.figures(found.worst)] if decides else []
        texts = [str(own)] if own else [self.quality.short] if self.quality else []
        driven = f", {self.coverage.driven} driven" if self.coverage.driven else ""
        experts = (
            [f"{self.coverage.reached}/{self.coverage.total} experts reached{driven}"] if self.coverage.loads else []
        )
        values = [f"{found.constants:,} constants equal" for found in [self.find(Values)] if found]
        return [*outputs, *texts, *experts, *values]

    def _demand(self, kind: type[C]) -> C:
        found = self.find(kind)
        if found is None:
            raise MoecError("M799", f"a proof without the check {kind.name!r}", "the proof", "report this")
        return found

    def __str__(self) -> str:
        found = self.find(Outputs)
        between = f": {found.comparison.candidate} against {found.comparison.reference}" if found else ""
        error = self.error
        verdict = "DIFFERS" if error else "close" if self.find(Lowering) else "equal"
        beside = "" if error or self.proven_on_target else self.verdict
        first = "; ".join(filter(None, [f"{verdict}{between}", beside, self.limits]))
        lines = [first, *(f"  {'ok  ' if c.ok else 'FAIL'} {c.name}: {c}" for c in self.checks)]
        return "\n".join([*lines, str(error)] if error else lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        checks = {check.name: check.to_dict() for check in self.checks}
        where = {"target": self.target, "ran_on": self.ran_on, "proven_on_target": self.proven_on_target}
        verdict = {"ok": self.ok, "verdict": self.verdict}
        return {**verdict, "seed": self.seed, "reference": self.reference, **where, "checks": checks}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verification:
        """The proof that `to_dict` wrote; its verdict is found anew. A check of a package that is not here is only
        shown, with the verdict that was recorded. Raises `msgspec.ValidationError` where the data has another form."""
        known = {check.name: check for check in all_checks()}
        found = [
            known[name].from_dict(entry) if name in known else RecordedCheck.of(name, entry)
            for name, entry in data["checks"].items()
        ]
        where = str(data.get("target", "")), str(data.get("ran_on", ""))
        return cls(tuple(found), int(data["seed"]), str(data["reference"]), *where)


def all_checks() -> tuple[type[Check], ...]:
    """moec's own checks, then those of other packages."""
    return (*CHECKS, *(entry.load() for entry in entry_points(group=GROUP)))


def prove(
    subject: Subject,
    engine: Engine,
    checks: Sequence[type[Check]] | None = None,
    until_failure: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Make every check on an engine.

    Args:
        subject: what the engine has to equal.
        engine: what is to be proven.
        checks: other ones than `all_checks()`.
        until_failure: make no more checks once one has failed.
        progress: is told of each check that is begun.

    Raises:
        MoecError: M105 when the reference yields NaN or infinity, M204 when it runs at no size that was tried, M101
            when the engine does not, M211 when a text is to be judged on that the model cannot read.
    """
    trial, found, progress = Trial(subject, engine), list[Check](), progress or Progress()
    wanted = all_checks() if checks is None else checks
    for number, check in enumerate(wanted):
        progress.advance(number, len(wanted), what=check.title)
        try:
            made = check.measure(trial)
        except Exception:
            if all(c.ok for c in found):
                raise
            break  # an engine that failed already may fail in any way later
        found += [] if made is None else [made]
        if until_failure and made is not None and not made.ok:
            break
    if subject.looser:
        failed = _turned(found, subject)
        found.insert(0 if failed else len(found), RecordedBounds(subject.looser, failed))
    reference = "engine" if subject.against is not None else subject.reference
    return Verification(tuple(found), subject.seed, reference, subject.target, subject.ran_on)


def _turned(checks: Sequence[Check], subject: Subject) -> str:
    """What fails and would not with the bounds that the manifest records; empty where they change nothing."""
    names = {bound.setting for bound in subject.looser}
    failed = (c for c in checks if names.intersection(c.turned_by(subject)))
    return next((e.what for e in (c.error() for c in failed) if e), "")
