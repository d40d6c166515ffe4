"""How far two engines are apart, as figures that a person can judge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.decoder_signature import is_present, without_padding
from moec.program.program import AppliedPass
from moec.program.signature import Sample, converted
from moec.proof.budgets import budget_of
from moec.proof.decided_tokens import ComparedTokens
from moec.proof.digits import at_most
from moec.shown import figure_of

# max |difference| / std(reference) that rounding alone explains in a network of tens of layers computed in this dtype
_ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
_UNDECIDED = 0.5  # how far apart two candidates are, in the same unit, that a quality budget may swap
_FEW = 16  # a spread of fewer elements than this says nothing


@dataclass(frozen=True)
class Tolerance:
    """What may differ.

    Attributes:
        deviation: the largest `max |candidate - reference| / std(reference)` of any output in any sample.
        rms: the largest `rms(candidate - reference) / std(reference)`: the budget of approximate passes, whose largest
            single error says little. why: where it comes from, in words.
    """

    deviation: float = math.inf
    rms: float = math.inf
    why: str = ""

    @classmethod
    def of(cls, dtype: torch.dtype) -> Tolerance:
        """The tolerance of a conversion that computes in `dtype`."""
        return cls(_ROUNDING[dtype])

    @classmethod
    def of_passes(cls, history: Sequence[AppliedPass]) -> Tolerance:
        """The default of all approximate passes together on what is no language model, see `moec.proof.budgets`."""
        budget = budget_of(history)
        return cls(rms=budget.max_rms, why=budget.why)

    @property
    def single(self) -> float:
        """By how much one element has to differ to be suspected, in standard deviations of the reference."""
        return min(self.deviation, self.rms)


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
            allows each of its places. None for integers, for rows of one element, and where a row is no choice: of a
            cache, or of hidden states.
        top1_undecided: share of the rows that disagree where the reference's two candidates are no further apart than
            the tolerance, so that rounding may decide.
        problem: why it fails whatever the figures say (shape, NaN, missing); empty otherwise.
        rms: `rms(difference) / std(reference)`, worst sample, with the std of `deviation`.
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
    rms: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """The differences between a reference and a candidate.

    Attributes:
        reference, candidate: names of the engines.
        tolerance: what `deviation` may be; None where something else decides.
        samples: how many inputs were run.
        outputs: one entry an output.
        max_rms, why: what `rms` may be, and where that comes from; None where nothing bounds it. Without either bound a
            text decides, and outputs only have to be numbers.
    """

    reference: str
    candidate: str
    tolerance: float | None
    samples: int
    outputs: tuple[OutputError, ...]
    max_rms: float | None = None
    why: str = ""

    @property
    def ok(self) -> bool:
        """Whether every output is within the tolerance."""
        return bool(self.outputs) and all(map(self.within, self.outputs))

    def within(self, output: OutputError) -> bool:
        """Whether one output is within the tolerance: without one, whether it is made of numbers and has a finite
        deviation."""
        if output.problem or not math.isfinite(output.deviation):
            return False
        near = self.max_rms is None or at_most(output.rms, self.max_rms)
        return near and (self.tolerance is None or at_most(output.deviation, self.tolerance))

    @property
    def allowed(self) -> str:
        """What may differ, in words."""
        bounds = [] if self.tolerance is None else [f"{figure_of(self.tolerance)} allowed"]
        bounds += [] if self.max_rms is None else [f"rms {figure_of(self.max_rms)} allowed ({self.why})"]
        return ", ".join(bounds) or "a text decides"

    def figures(self, output: OutputError) -> str:
        """What decides about an output beside what is allowed, in words."""
        largest = f"max |d|/std {output.deviation:.2g}"
        if self.max_rms is None:
            bound = f", {self.allowed}" if self.tolerance is None else f" {self._bound(self.tolerance)}"
            return f"{largest}{bound}"
        said = f"rms(d)/std {output.rms:.2g} {self._bound(self.max_rms)} ({self.why}), cosine {output.cosine:.4g}"
        return said if self.tolerance is None else f"{largest} {self._bound(self.tolerance)}, {said}"

    def _bound(self, value: float) -> str:
        return f"of {figure_of(value)} allowed" if self.ok else f"where {figure_of(value)} is allowed"

    @property
    def worst(self) -> OutputError:
        """The output that deviates most."""
        by_rms = self.max_rms is not None
        return max(self.outputs, key=lambda o: (not self.within(o), o.rms if by_rms else o.deviation))

    def __str__(self) -> str:
        w = self.worst
        if w.problem:
            return f"{w.name}: {w.problem}"
        if self.tolerance is None and self.max_rms is None:
            return f"max |d|/std {w.deviation:.2g} in {w.name}, which {self.allowed} about"
        return self.figures(w) + (f" in {w.name}" if len(self.outputs) > 1 else "")


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
    margin, count = min(tolerance.single, _UNDECIDED) if tolerance else _UNDECIDED, 0
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
    deviation, rms = (_bound(b) for b in (tolerance.deviation, tolerance.rms)) if tolerance else (None, None)
    why = tolerance.why if tolerance else ""
    return Comparison(reference.name, candidate.name, deviation, count, outputs, rms, why)


def _bound(allowed: float) -> float | None:
    return allowed if math.isfinite(allowed) else None


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
    error_squares: float = 0.0


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
    return _measure(want.double(), got.double(), margin, _chooses(name))


def _chooses(name: str) -> bool:
    """Whether the largest element of a row means something: not in keys and values, nor in what a layer passes on."""
    return not is_present(name) and not any(word in name for word in ("hidden_state", "embed", "pooler"))


def _measure(want: Tensor, got: Tensor, margin: float, chooses: bool) -> _Difference:
    """`margin`: how far apart two candidates of a row are, in spreads, that rounding may swap."""
    if not want.numel():
        return _Difference()
    error, norm = (got - want).abs(), float(want.norm())
    spread = float(want.std(correction=0))
    product = norm * float(got.norm())
    cosine = min(1.0, float((want * got).sum()) / product) if product else float(norm == float(got.norm()))
    relative = float(error.norm()) / norm if norm else (math.inf if float(error.max()) else 0.0)
    rows = _top1(want, got, margin * spread) if chooses and want.dim() and want.shape[-1] > 1 else (0, 0, 0)
    sums = float(want.sum()), float(want.square().sum())
    lead = want.numel(), float(error.max()), float(error.sum()), spread
    return _Difference(*lead, *sums, relative, cosine, *rows, error_squares=float(error.square().sum()))


def _top1(want: Tensor, got: Tensor, margin: float) -> tuple[int, int, int]:
    """Rows, rows that agree, and rows that disagree by no more than `margin` in the reference."""
    gap = want.amax(-1) - want.gather(-1, got.argmax(-1, keepdim=True)).squeeze(-1)
    return gap.numel(), int((gap == 0).sum()), int(((gap > 0) & (gap <= margin)).sum())


def _summary(name: str, differences: list[_Difference]) -> OutputError:
    elements = sum(d.elements for d in differences)
    mean = sum(d.total for d in differences) / max(1, elements)
    pooled = math.sqrt(max(0.0, sum(d.squares for d in differences) / max(1, elements) - mean * mean))
    problem = next((d.problem for d in differences if d.problem), "" if elements else "no element could be compared")
    scale = pooled or abs(mean)
    deviation = math.inf if problem else max(_deviation(d, scale) for d in differences)
    rms = math.inf if problem else max(_in_spreads(d, _rms(d), scale) for d in differences)
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
        rms,
    )


def _deviation(d: _Difference, pooled: float) -> float:
    return _in_spreads(d, d.max_abs, pooled)


def _rms(d: _Difference) -> float:
    return math.sqrt(d.error_squares / d.elements) if d.elements else 0.0


def _in_spreads(d: _Difference, error: float, pooled: float) -> float:
    spread = d.spread if d.elements >= _FEW and d.spread else pooled
    return error / spread if spread else (math.inf if error else 0.0)
