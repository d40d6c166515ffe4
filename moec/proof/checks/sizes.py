"""Check: the engine runs at every size at which the reference does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.proof.checks.check import Check, Figure
from moec.proof.evidence import RefusedSize, compared, sizes_to_prove
from moec.proof.trial import Trial, sizes_of


@dataclass(frozen=True)
class SizesRun(Check):
    """The sizes of the inputs.

    Attributes:
        engine: its name.
        sizes: the dynamic dimensions of each input that was compared.
        refused: those that the engine cannot run. A dimension of 1 there is a limitation that is reported, since
            exporters specialise it; any other refusal is a failure.
    """

    engine: str
    sizes: tuple[dict[str, int], ...]
    refused: tuple[RefusedSize, ...] = ()

    name: ClassVar[str] = "sizes"
    title: ClassVar[str] = "Sizes of the inputs"

    @classmethod
    def measure(cls, trial: Trial) -> Self:
        evidence, _ = trial.once(compared)
        sizes = tuple(sizes_of(trial.subject.source.inputs, sample) for sample in evidence.samples)
        return cls(trial.engine.name, sizes, trial.once(sizes_to_prove).refused)

    @property
    def failures(self) -> tuple[RefusedSize, ...]:
        """Refusals that are not about a dimension of 1."""
        return tuple(r for r in self.refused if 1 not in r.sizes.values())

    def error(self) -> MoecError | None:
        if not self.failures:
            return None
        first = self.failures[0]
        where = named(first.sizes)
        fix = "fix the dimension with --input name=shape:dtype, or report this with `moec compile --dump DIR`"
        return MoecError("M101", f"{self.engine} cannot run at {where}: {first.reason}", where, fix)

    def figures(self) -> tuple[Figure, ...]:
        run = [Figure(named(sizes), {"the engine": "runs"}) for sizes in self.sizes]
        refused = [
            Figure(named(r.sizes), {"the engine": f"cannot run: {r.reason}"}, False if r in self.failures else None)
            for r in self.refused
        ]
        return (*run, *refused)

    def __str__(self) -> str:
        lines = [
            f"{len(self.sizes)} inputs run",
            *(f"cannot run at {named(r.sizes)}: {r.reason}" for r in self.refused),
        ]
        return "; ".join(lines)


def named(sizes: dict[str, int]) -> str:
    """`batch=1, sequence=1`."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "fixed sizes"
