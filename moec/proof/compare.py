"""How far two engines are apart, as figures that a person can judge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.decoder_signature import without_padding
from moec.program.signature import Sample, converted
from moec.proof.decided_tokens import ComparedTokens
from moec.proof.digits import at_most
from moec.shown import figure_of

# max |difference| / std(reference) that rounding alone explains in a network of tens of layers computed in this dtype
_ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
_APPROXIMATE = 0.5  # the default budget of all approximate passes together, in the same unit
_FEW = 16  # a spread of fewer elements than this says nothing


@dataclass(frozen=True)
class Tolerance:
    """What may differ.

    Attributes:
        deviation: the largest `max |candidate - reference| / std(reference)` of any output in any sample.
    """

    deviation: float

    @classmethod
    def of(cls, dtype: torch.dtype, approximate: bool = False) -> Tolerance:
        """The tolerance of a conversion that computes in `dtype`; with approximate passes in it, the default budget of
        all of them together."""
        return cls(_APPROXIMATE if approximate else _ROUNDING[dtype])


@dataclass(frozen=True)
class OutputError:
    """The difference in one output, over all samples.

    Attributes:
        name: the output.
        elements: how many numbers were compared.
        max_abs, mean_abs: of `candidate - reference`.
        deviation: `max |difference| / std(reference)`, worst sample; this figure decides. The std is the sample's own,
            or that of all samples together where one has fewer than 16 elements. For integer outputs 0 when equal, else
            infinite.
        relative: `‖difference‖ / ‖reference‖`, worst sample.
        cosine: of the flattened outputs, worst sample.
        top1: share of the rows (last dimension) whose largest element is at the same place; a tie in the reference
            allows each of its places. None for integers and for rows of one element.
        top1_undecided: share of the rows that disagree where the reference's two candidates are no further apart than
            the tolerance, so that rounding may decide.
        problem: why it fails whatever the figures say (shape, NaN, missing); empty otherwise.
    """

    name: str
    elements: int
    max_abs: float
    mean_abs: float
    deviation: float
    relative: float
    cosine: float
    top1: float | None
    top1_undecided: float | None
    problem: str


@dataclass(frozen=True)
class Comparison:
    """The differences between a reference and a candidate.

    Attributes:
        reference, candidate: names of the engines.
        tolerance: what `deviation` may be; None where a budget on a text decides, and outputs only have to be numbers.
        samples: how many inputs were run.
        outputs: one entry an output.
    """

    reference: str
    candidate: str
    tolerance: float | None
    samples: int
    outputs: tuple[OutputError, ...]

    @property
    def ok(self) -> bool:
        """Whether every output is within the tolerance."""
        return bool(self.outputs) and all(map(self.within, self.outputs))

    def within(self, output: OutputError) -> bool:
        """Whether one output is within the tolerance: without one, whether it is made of numbers and has a finite
        deviation."""
        if output.problem or not math.isfinite(output.deviation):
            return False
        return self.tolerance is None or at_most(output.deviation, self.tolerance)

    @property
    def allowed(self) -> str:
        """What the deviation may be, in words."""
        return "a text decides" if self.tolerance is None else f"{figure_of(self.tolerance)} allowed"

    @property
    def worst(self) -> OutputError:
        """The output that deviates most."""
        return max(self.outputs, key=lambda o: (not self.within(o), o.deviation))

    def __str__(self) -> str:
        w = self.worst
        if w.problem:
            return f"{w.name}: {w.problem}"
        if self.tolerance is None:
            return f"max |d|/std {w.deviation:.2g} in {w.name}, which {self.allowed} about"
        bound = f"of {self.allowed}" if self.ok else f"where {figure_of(self.tolerance)} is allowed"
        return f"max |d|/std {w.deviation:.2g} {bound}" + (f" in {w.name}" if len(self.outputs) > 1 else "")


def compare(
    reference: Engine,
    candidate: Engine,
    samples: Iterable[Sample],
    tolerance: Tolerance | None,
    compared: Sequence[ComparedTokens | None] | None = None,
) -> Comparison:
    """Run both engines on the samples and measure the difference in each output of the reference.

    Everything is compared, padded positions too, except in decoders with a cache, where a row of padding may see
    nothing at all. With `compared`, one a sample, only those tokens; all where it is None. Without a tolerance, outputs
    only have to be numbers. Raises M105 when the reference itself yields NaN or infinity.
    """
    found: dict[str, list[_Difference]] = {}
    margin, count = tolerance.deviation if tolerance else _APPROXIMATE, 0
    for count, sample in enumerate(samples, 1):
        want, got = (engine(**converted(engine.inputs, sample)) for engine in (reference, candidate))
        for name, value in want.items():
            found.setdefault(name, []).append(
                _difference(
                    name, *_parts(value, got.get(name), sample, compared[count - 1] if compared else None), margin
                )
            )
    if not found:
        raise MoecError(
            "M799", "two engines were to be compared on nothing", f"{count} samples of {candidate.name}", "report this"
        )
    outputs = tuple(_summary(name, differences) for name, differences in found.items())
    return Comparison(reference.name, candidate.name, tolerance.deviation if tolerance else None, count, outputs)


def _parts(
    want: Tensor, got: Tensor | None, sample: Sample, tokens: ComparedTokens | None
) -> tuple[Tensor, Tensor | None]:
    """What of two outputs is to be compared."""
    if got is None or got.shape != want.shape:
        return want, got
    return (
        (tokens.of(want, sample), tokens.of(got, sample))
        if tokens
        else (without_padding(want, sample), without_padding(got, sample))
    )


@dataclass(frozen=True)
class _Difference:
    """Figures of one output in one sample; `total` and `squares` are the reference's sums, for the spread over all
    samples."""

    elements: int = 0
    max_abs: float = 0.0
    sum_abs: float = 0.0
    spread: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    relative: float = 0.0
    cosine: float = 1.0
    rows: int = 0
    agree: int = 0
    undecided: int = 0
    problem: str = ""


def _difference(name: str, want: Tensor, got: Tensor | None, margin: float) -> _Difference:
    if want.is_floating_point() and not want.isfinite().all():
        fix = "the source's weights or the sample inputs are not usable; look at them with `moec inspect`"
        raise MoecError(
            "M105",
            "the untouched model yields NaN or infinity, so nothing can be compared with it",
            f"output {name!r}",
            fix,
        )
    if got is None:
        return _Difference(problem="the output is missing")
    if want.shape != got.shape:
        return _Difference(problem=f"shape {list(got.shape)} instead of {list(want.shape)}")
    if not got.isfinite().all():
        return _Difference(problem=f"{int((~got.isfinite()).sum())} of {got.numel()} elements are NaN or infinite")
    if not want.is_floating_point():
        wrong = int((want != got).sum())
        return _Difference(want.numel(), problem=f"{wrong} of {want.numel()} integers differ" if wrong else "")
    return _measure(want.double(), got.double(), margin)


def _measure(want: Tensor, got: Tensor, margin: float) -> _Difference:
    """`margin`: how far apart two candidates of a row are, in spreads, that rounding may swap."""
    if not want.numel():
        return _Difference()
    error, norm = (got - want).abs(), float(want.norm())
    spread = float(want.std(correction=0))
    product = norm * float(got.norm())
    cosine = min(1.0, float((want * got).sum()) / product) if product else float(norm == float(got.norm()))
    relative = float(error.norm()) / norm if norm else (math.inf if float(error.max()) else 0.0)
    rows = _top1(want, got, margin * spread) if want.dim() and want.shape[-1] > 1 else (0, 0, 0)
    sums = float(want.sum()), float(want.square().sum())
    return _Difference(want.numel(), float(error.max()), float(error.sum()), spread, *sums, relative, cosine, *rows)


def _top1(want: Tensor, got: Tensor, margin: float) -> tuple[int, int, int]:
    """Rows, rows that agree, and rows that disagree by no more than `margin` in the reference."""
    gap = want.amax(-1) - want.gather(-1, got.argmax(-1, keepdim=True)).squeeze(-1)
    return gap.numel(), int((gap == 0).sum()), int(((gap > 0) & (gap <= margin)).sum())


def _summary(name: str, differences: list[_Difference]) -> OutputError:
    elements = sum(d.elements for d in differences)
    mean = sum(d.total for d in differences) / max(1, elements)
    pooled = math.sqrt(max(0.0, sum(d.squares for d in differences) / max(1, elements) - mean * mean))
    problem = next((d.problem for d in differences if d.problem), "" if elements else "no element could be compared")
    deviation = math.inf if problem else max(_deviation(d, pooled or abs(mean)) for d in differences)
    rows = sum(d.rows for d in differences)
    return OutputError(
        name,
        elements,
        max(d.max_abs for d in differences),
        sum(d.sum_abs for d in differences) / max(1, elements),
        deviation,
        max(d.relative for d in differences),
        min(d.cosine for d in differences),
        sum(d.agree for d in differences) / rows if rows else None,
        sum(d.undecided for d in differences) / rows if rows else None,
        problem,
    )


def _deviation(d: _Difference, pooled: float) -> float:
    spread = d.spread if d.elements >= _FEW and d.spread else pooled
    return d.max_abs / spread if spread else (math.inf if d.max_abs else 0.0)
