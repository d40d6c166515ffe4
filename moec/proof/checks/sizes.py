"""Check: the engine runs at every size at which the reference does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.program.decoder_signature import PAST, SEQUENCE
from moec.program.signature import sizes_of
from moec.proof.bounds import Bound
from moec.proof.checks.check import Check, Figure
from moec.proof.evidence import EDGE, Evidence, RefusedSize, compared, sizes_to_prove
from moec.proof.sizes import Beyond, named
from moec.proof.trial import Trial


@dataclass(frozen=True)
class SizesRun(Check):
    """The sizes of the inputs.

    Attributes:
        engine: its name.
        sizes: the dynamic dimensions of each input that was compared.
        refused: those that the engine cannot run. A dimension of 1, at which it runs nowhere, is a limitation that is
            reported, since exporters specialise it; any other refusal is a failure.
        bounds: where the model may behave in another way, by what shows it, and how large the last size
            before is; of those on both sides of which inputs stand.
        beyond: what no input reached, and why.
    """

    engine: str
    sizes: tuple[dict[str, int], ...]
    refused: tuple[RefusedSize, ...] = ()
    bounds: tuple[tuple[str, int], ...] = ()
    beyond: tuple[Beyond, ...] = ()

    name: ClassVar[str] = "sizes"
    title: ClassVar[str] = "Sizes of the inputs"

    @classmethod
    def measure(cls, trial: Trial) -> Self:
        evidence, _ = trial.once(compared)
        proven = trial.once(sizes_to_prove)
        sizes = tuple(sizes_of(trial.subject.source.inputs, sample) for sample in evidence.whole)
        bounds = tuple((b.name, b.size) for b in proven.plan.bounds if _on_both_sides(b, sizes))
        beyond = (*proven.beyond, *_undecided(evidence, sizes, proven.far))
        return cls(trial.engine.name, sizes, proven.refused, bounds, beyond)

    @property
    def failures(self) -> tuple[RefusedSize, ...]:
        """Refusals that are not about a dimension of 1."""
        return tuple(r for r in self.refused if not self._specialised(r.sizes))

    def _specialised(self, sizes: dict[str, int]) -> bool:
        """Whether some dimension is 1 there, and nowhere where the engine runs."""
        return any(n == 1 and all(run.get(name) != 1 for run in self.sizes) for name, n in sizes.items())

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
        beyond = [Figure(b.what, {"the engine": f"not proven: {b.why}"}, None) for b in self.beyond]
        return (*run, *refused, *beyond)

    @property
    def note(self) -> str:
        shown = ", ".join(f"{name} ({size:,})" for name, size in self.bounds)
        return f"The model shows bounds, and inputs stand on both sides: {shown}." if shown else ""

    def __str__(self) -> str:
        lines = [
            f"{len(self.sizes)} inputs run, {self.longest}",
            *(f"cannot run at {named(r.sizes)}: {r.reason}" for r in self.refused),
            *(f"not run: {b}" for b in self.beyond),
        ]
        return "; ".join(lines)

    @property
    def longest(self) -> str:
        """The largest of each dimension."""
        names = dict.fromkeys(name for sizes in self.sizes for name in sizes)
        most = {name: max(sizes.get(name, 0) for sizes in self.sizes) for name in names}
        return f"up to {named(most)}" if most else "of fixed sizes"


def _on_both_sides(bound: Bound, sizes: Sequence[dict[str, int]]) -> bool:
    """Whether inputs of a bound's size were run, and of one more; a cache counts to the length of its text."""
    run = {n for s in sizes for n in ((s.get(bound.dimension, 0),) if bound.dimension else _lengths(s))}
    return {bound.size, bound.size + 1} <= run


def _lengths(sizes: dict[str, int]) -> tuple[int, ...]:
    whole = (sizes[SEQUENCE] + sizes[PAST],) if SEQUENCE in sizes and PAST in sizes else ()
    return (*sizes.values(), *whole)


def _undecided(evidence: Evidence, sizes: Sequence[dict[str, int]], far: Sequence[dict[str, int]]) -> list[Beyond]:
    """Long inputs that could not be compared, or only in part, since experts hang on rounding there."""
    left = [Beyond(named(s), EDGE) for s in far if s not in sizes]
    for found, tokens in zip(sizes, evidence.compared or (), strict=False):
        if tokens is not None and found in far and tokens.count < tokens.total:
            left.append(Beyond(f"{tokens.total - tokens.count:,} of {tokens.total:,} tokens at {named(found)}", EDGE))
    return left
