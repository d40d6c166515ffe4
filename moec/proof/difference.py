"""How far one output of an engine is from the reference's: figures of a sample, and of all samples together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.program.decoder_signature import is_present

_FEW = 16  # a spread of fewer elements than this says nothing
_BLOCK = 2**15  # elements at a time: in float64 a few of that many fit into a core's cache


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
        rms: `rms(difference) / std(reference)`, worst sample, with the std of `deviation`. row: that of the worst row
            (last dimension: a token, a sentence), which says what a few wrong ones among many right ones hide.
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
    row: float = 0.0


@dataclass(frozen=True)
class Difference:
    """Figures of one output in one sample; `total` and `squares` are the reference's sums, for the spread over all
    samples, `error_squares` the sum of the squared error, and `row_squares` its mean in the worst row."""

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
    row_squares: float = 0.0


def difference(name: str, want: Tensor, got: Tensor | None, margin: float) -> Difference:
    """How far an output is from the reference's. `margin`: how far apart two candidates of a row are, in spreads, that
    rounding may swap. Raises M105 when the reference itself yields NaN or infinity."""
    if want.is_floating_point() and not _finite(want):
        fix = "the source's weights or the sample inputs are not usable; look at them with `moec inspect`"
        raise MoecError(
            "M105",
            "the untouched model yields NaN or infinity, so nothing can be compared with it",
            f"output {name!r}",
            fix,
        )
    if got is None:
        return Difference(problem="the output is missing")
    if want.shape != got.shape:
        return Difference(problem=f"shape {list(got.shape)} instead of {list(want.shape)}")
    if not _finite(got):
        return Difference(problem=f"{int((~got.isfinite()).sum())} of {got.numel()} elements are NaN or infinite")
    if not want.is_floating_point():
        wrong = int((want != got).sum())
        return Difference(want.numel(), problem=f"{wrong} of {want.numel()} integers differ" if wrong else "")
    return _measure(want, got, margin, _chooses(name))


def _finite(values: Tensor) -> bool:
    """Whether none of them is NaN or infinite: the extremes are such where any is, and need no memory."""
    if not values.numel() or not values.is_floating_point():
        return bool(values.isfinite().all())
    return all(bool(extreme.isfinite()) for extreme in values.aminmax())


def _chooses(name: str) -> bool:
    """Whether the largest element of a row means something: not in keys and values, nor in what a layer passes on."""
    return not is_present(name) and not any(word in name for word in ("hidden_state", "embed", "pooler"))


def _measure(want: Tensor, got: Tensor, margin: float, chooses: bool) -> Difference:
    """In float64, some rows at a time: the whole in another dtype, and once more for each figure, would take more time
    for its memory than for the figures."""
    if not want.numel():
        return Difference()
    last = want.shape[-1] if want.dim() else 1
    step = max(1, _BLOCK // last)
    halves = (torch.split(side.reshape(-1, last), step) for side in (want, got))
    blocks = list(zip(*halves, strict=True))
    total, squares, spread = _moments([w for w, _ in blocks])
    threshold = margin * spread if chooses and want.dim() and last > 1 else None
    parts = [_block(w.double(), g.double(), threshold) for w, g in blocks]
    product, got_squares, error_sum, error_squares = (sum(p[k] for p in parts) for k in range(4))
    largest, worst = max(p[4] for p in parts), max(p[5] for p in parts)
    rows, agree, undecided = (sum(p[6][k] for p in parts) for k in range(3))
    norm, got_norm = math.sqrt(squares), math.sqrt(got_squares)
    return Difference(
        want.numel(),
        largest,
        error_sum,
        spread,
        total,
        squares,
        relative=math.sqrt(error_squares) / norm if norm else (math.inf if largest else 0.0),
        cosine=min(1.0, product / (norm * got_norm)) if norm and got_norm else float(norm == got_norm),
        rows=rows,
        agree=agree,
        undecided=undecided,
        error_squares=error_squares,
        row_squares=worst,
    )


def _moments(blocks: Sequence[Tensor]) -> tuple[float, float, float]:
    """Sum, sum of squares and standard deviation of what is in all blocks."""
    count, total = sum(b.numel() for b in blocks), sum(float(b.double().sum()) for b in blocks)
    squares = centred = 0.0
    for block in blocks:
        values = block.double().flatten()
        squares += float(values.dot(values))
        apart = values - total / count
        centred += float(apart.dot(apart))
    return total, squares, math.sqrt(centred / count)


def _block(want: Tensor, got: Tensor, margin: float | None) -> tuple[Any, ...]:
    """Of some rows: the sums of their product, of the squares of `got`, of the error and of its square, the largest
    error, the largest mean of a row's squares, and what `_top1` says, where `margin` is given."""
    product, own = want.flatten().dot(got.flatten()), got.flatten().dot(got.flatten())
    error = (got - want).abs_()
    total, largest, squares = error.sum(), error.max(), error.square_().sum(-1)
    rows = _top1(want, got, margin) if margin is not None else (0, 0, 0)
    figures = torch.stack([product, own, total, squares.sum(), largest, squares.max() / want.shape[-1]]).tolist()
    return *figures, rows


def _top1(want: Tensor, got: Tensor, margin: float) -> tuple[int, int, int]:
    """Rows, rows that agree, and rows that disagree by no more than `margin` in the reference."""
    gap = want.amax(-1) - want.gather(-1, got.argmax(-1, keepdim=True)).squeeze(-1)
    return gap.numel(), int((gap == 0).sum()), int(((gap > 0) & (gap <= margin)).sum())


def summary(name: str, differences: Sequence[Difference]) -> OutputError:
    """One output over all samples: the largest figure of each kind, in spreads of its own sample."""
    elements = sum(d.elements for d in differences)
    mean = sum(d.total for d in differences) / max(1, elements)
    pooled = math.sqrt(max(0.0, sum(d.squares for d in differences) / max(1, elements) - mean * mean))
    problem = next((d.problem for d in differences if d.problem), "" if elements else "no element could be compared")
    scale = pooled or abs(mean)
    deviation = math.inf if problem else max(_deviation(d, scale) for d in differences)
    rms = math.inf if problem else max(_in_spreads(d, _rms(d), scale) for d in differences)
    row = math.inf if problem else max(_in_spreads(d, math.sqrt(d.row_squares), scale) for d in differences)
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
        row,
    )


def _deviation(d: Difference, pooled: float) -> float:
    return _in_spreads(d, d.max_abs, pooled)


def _rms(d: Difference) -> float:
    return math.sqrt(d.error_squares / d.elements) if d.elements else 0.0


def _in_spreads(d: Difference, error: float, pooled: float) -> float:
    spread = d.spread if d.elements >= _FEW and d.spread else pooled
    return error / spread if spread else (math.inf if error else 0.0)
