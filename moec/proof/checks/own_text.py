"""Check: after approximate passes, a language model says nearly what it said, on texts that it writes itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.execution.streaming import StreamingEngine
from moec.program.decoder_signature import text_inputs
from moec.proof.budgets import Budget, OverBudget, budget_of
from moec.proof.checks.check import Check, Figure
from moec.proof.own_text import MILDER, OwnQuality, OwnText, judge, write_own_text
from moec.proof.subject import Subject
from moec.proof.trial import Trial

# what kernels may cost beside the program that they run, where the user chose inexact ones: activations of 8 bits cost
# a trained Llama of 7 M parameters 0.0001 nats
KERNELS = Budget(0.002, 0.95, "inexact kernels")


@dataclass(frozen=True)
class OwnTextQuality(Check):
    """KL divergence and top-1 agreement on the untouched model's own continuations; see `moec.proof.own_text`.

    Attributes:
        quality: of the engine, beside the untouched model.
        kernels: of the engine beside its own program, where the user chose inexact kernels.
    """

    quality: OwnQuality
    kernels: OwnQuality | None = None

    name: ClassVar[str] = "own text"
    title: ClassVar[str] = "Quality on the model's own text"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        """Where approximate passes were applied to a language model, and neither a bound on the outputs nor a budget on
        a text was asked for."""
        subject, engine = trial.subject, trial.engine
        if subject.judged_by != "own text":
            return None
        text = trial.once(own_text)
        quality = judge(trial.reference, engine, text, budget_of(subject.program.history, subject.max_kl))
        if subject.kernel_deviation is None:
            return cls(quality)
        program = StreamingEngine(subject.program, "the program that it was built from")
        return cls(quality, judge(program, engine, text, KERNELS))

    @property
    def judged(self) -> tuple[OwnQuality, ...]:
        """Both comparisons, or the one."""
        return (self.quality,) if self.kernels is None else (self.quality, self.kernels)

    def error(self) -> MoecError | None:
        found = next((q for q in self.judged if not q.ok), None)
        if found is None:
            return None
        what = f"{found.candidate} differs from {found.reference}: {'; '.join(found.problems)}"
        where = f"{found.tokens} tokens of {found.texts} texts that the untouched model continues"
        if found is self.kernels:
            return MoecError("M107", what, where, "leave accuracy=int8 out of the target")
        return OverBudget("M107", what, where, MILDER)

    def turned_by(self, subject: Subject) -> tuple[str, ...]:
        """The kernels' own budget is fixed; any of the others takes the place of the default."""
        return ("tolerance", "max_kl", "max_perplexity_ratio") if not self.quality.ok else ()

    @property
    def note(self) -> str:
        found = self.quality
        return (
            f"{found.texts} texts that the untouched model wrote itself, {found.tokens} predictions of a next token "
            f"compared. The budget is that of {found.why}."
        )

    def figures(self) -> tuple[Figure, ...]:
        return tuple(
            Figure(f"{name}, beside {q.reference}", {"": text}, kept)
            for q in self.judged
            for name, text, kept in q.budgets
        )

    def __str__(self) -> str:
        return "; ".join(f"{name} {text}" for q in self.judged for name, text, _ in q.budgets)


def own_text(trial: Trial) -> OwnText:
    """The texts, written once."""
    subject = trial.subject
    written = subject.own_text
    if written is not None and trial.holds(text_inputs(subject.source.inputs, written.ids)):
        return written
    return write_own_text(trial.reference, subject.source, subject.seed, trial.holds_sizes, subject.streamed)
