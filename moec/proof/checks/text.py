"""Check: the engine's quality on a text, within the budget that was given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from moec.errors import MoecError
from moec.proof.budgets import OverBudget
from moec.proof.checks.check import Check, Figure
from moec.proof.examination import examine
from moec.proof.quality import Quality
from moec.proof.subject import Subject
from moec.proof.trial import Trial


@dataclass(frozen=True)
class TextQuality(Check):
    """Perplexity, KL divergence and top-1 agreement on a text; see `moec.proof.quality`."""

    quality: Quality

    name: ClassVar[str] = "text"
    title: ClassVar[str] = "Quality on text"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        subject = trial.subject
        if subject.exam is None or subject.corpus is None:
            return None
        quality = examine(
            subject.exam, subject.corpus, trial.reference, trial.engine, subject.captured, subject.program
        )
        return cls(replace(quality, engine_bytes=subject.engine_bytes, source_bytes=subject.source_bytes))

    def error(self) -> MoecError | None:
        found = self.quality
        if found.ok:
            return None
        what = "; ".join(found.problems) or f"the KL divergence is {found.kl_mean}"
        fix = "make the passes less aggressive, or allow more with --max-kl or --max-perplexity-ratio"
        return OverBudget("M107", what, f"{found.exam.text}, {found.tokens:,} tokens", fix)

    def turned_by(self, subject: Subject) -> tuple[str, ...]:
        return "max_kl", "max_perplexity_ratio"

    @property
    def note(self) -> str:
        found = self.quality
        return (
            f"{found.exam.text}: {found.tokens:,} tokens predicted, in {found.windows} windows of up to "
            f"{found.exam.window}."
        )

    def figures(self) -> tuple[Figure, ...]:
        budgets = {name: (bound, within) for name, bound, within in self.quality.budgets()}
        rows = [Figure(name, {"": figure}) for name, figure in self.quality.rows()]
        judged = [Figure(name, {"": text}, within) for name, (text, within) in budgets.items()]
        return (*judged, *rows)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "perplexity_ratio": self.quality.perplexity_ratio}

    def __str__(self) -> str:
        budgets = "; ".join(f"{name} {text}" for name, text, _ in self.quality.budgets())
        details = "\n".join(f"    {line}" for line in str(self.quality).splitlines())
        return f"{budgets}\n{details}"
