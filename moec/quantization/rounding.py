"""Numbers on small integer grids: round to nearest, and half-quadratic refinement, as lazy weights that hold one block
in memory.

A weight `[..., out, in]` is cut along `in` into groups with one scale each (and one zero point on asymmetric grids).
What comes out is what `moec::dequantize` reads. No method here needs data; the one that does is
`moec.quantization.gptq`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from moec.dialect import pack
from moec.quantization.grid import INTEGERS, Grid
from moec.quantization.small_floats import quantize_floats
from moec.weights.digest import add_tensor
from moec.weights.remembered import key_of, remembered
from moec.weights.threads import in_threads
from moec.weights.weight import BLOCK_BYTES, PIECE, FloatCodes, PackedWeight, Piece, Weight, block_bytes
from moec.weights.widths import taken
from moec.workers.working import pool

_REMEMBERED_BYTES = 32 * 2**20
_SPARE_BYTES = 2**29  # of scales that wait for their turn, see `_Waiting`
_HELD_BYTES = 64 * PIECE  # while a piece is refined: some ten times its numbers in float32
WORTH_KEEPING = 2**20  # numbers: fewer are refined anew faster than anyone notices
_NORM, _BETA, _KAPPA = 0.7, 10.0, 1.01  # of the half-quadratic solver: the exponent p, and beta's start and growth
_STARTS, _STEPS = (1.0, 0.9, 0.8, 0.7), 5  # scales to start from, in units of the rounding's own, and steps from each


PackedParts = (
    PackedWeight | tuple[PackedWeight, ...]
)  # the whole, or a part for each width of its grid, see `Grid.parts`


def quantize_weight(weight: Weight, grid: Grid) -> PackedWeight:
    """Put a floating-point weight `[..., out, in]` on a grid; scales have its dtype, and nothing is read before the
    result is."""
    *leading, width = weight.shape
    job = _Job(weight, grid)

    def part(index: int, columns: int, dtype: torch.dtype, name: str) -> Weight:
        text = f"{name} of [{grid}]({weight.origin})"
        return Weight((*leading, columns), dtype, text, partial(job.read, index), weight.atomic, inputs=(weight,))

    groups = width // grid.group
    zero = None if grid.symmetric else part(2, groups, torch.uint8, "zero")
    codes, scale = part(0, width * grid.stored // 8, torch.uint8, "packed"), part(1, groups, weight.dtype, "scale")
    return PackedWeight(codes, scale, zero, grid.stored)


def quantize_stack(weight: Weight, grid: Grid, overall: Weight | None = None) -> PackedParts | FloatCodes:
    """The same of a stack whose experts may have several widths, or of small floats, whose `overall` number may be
    given."""
    if grid.format != INTEGERS:
        return quantize_floats(weight, grid.format, overall)
    found = tuple(
        quantize_weight(weight if experts is None else taken(weight, experts), own) for own, experts in grid.parts()
    )
    return found if grid.widths else found[0]


@dataclass(frozen=True, eq=False)
class _Job:
    """One weight and its grid."""

    weight: Weight
    grid: Grid

    def read(self, index: int, start: int, stop: int) -> Tensor:
        """Rows of the packed tensor (index 0), the scales (1) or the zero points (2). All three come of one
        computation, which is kept whole while it is small, else without the packed numbers."""
        if (stop - start) * math.prod(self.weight.shape[1:]) <= _REMEMBERED_BYTES:
            return _remembered(self, start, stop)[index]
        waiting = _waiting(self)
        first = waiting.first_missing(start, stop) if index else start
        if first < stop:
            made = _block(self, first, stop)
            waiting.keep(first, stop, made)
            if first == start:
                return made[index]
        if waiting.is_last(index, stop):
            _waiting.cache_clear()
        return waiting.parts[index - 1][start:stop]


class _Waiting:
    """Scales and zero points of a weight whose packed numbers are being written: a file holds them after those, and
    they would be computed once more. Kept of one weight at a time, where that is little and memory has no limit.

    Attributes:
        parts: scales, and zero points if there are any; nothing where there is no room for them.
        there: for each row, whether it is in them.
    """

    def __init__(self, job: _Job) -> None:
        rows = job.weight.shape[0]
        forms = _forms(job, rows)[1:]
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in forms)
        fits = size <= _SPARE_BYTES and block_bytes() == BLOCK_BYTES
        with torch.inference_mode(False):  # they may be written to outside of the mode in which they were made
            self.parts = [torch.empty(shape, dtype=dtype) for shape, dtype in forms] if fits else []
            self.there = torch.zeros(rows, dtype=torch.bool)

    def keep(self, start: int, stop: int, made: list[Tensor]) -> None:
        """Keep what was computed of some rows."""
        for part, new in zip(self.parts, made[1:], strict=False):
            part[start:stop] = new
        self.there[start:stop] = bool(self.parts)

    def first_missing(self, start: int, stop: int) -> int:
        """The first of some rows that has to be computed; `stop` where all are kept."""
        kept = self.there[start:stop].tolist()
        return start + kept.index(False) if False in kept else stop

    def is_last(self, index: int, stop: int) -> bool:
        """Whether nothing is left to wait for once a part has been read so far."""
        return index == len(self.parts) and stop == len(self.there)


@lru_cache(maxsize=1)
def _waiting(job: _Job) -> _Waiting:
    return _Waiting(job)


def _block(job: _Job, start: int, stop: int) -> list[Tensor]:
    """Packed numbers, scales and zero points of some rows; what took a search is kept for the next compile."""
    if job.grid.method != "hqq" or (stop - start) * math.prod(job.weight.shape[1:]) < WORTH_KEEPING:
        return _encoded(job, start, stop)
    content = hashlib.sha256()
    for piece in job.weight.pieces(start, stop):
        add_tensor(content, piece.read())
    key = key_of("hqq", job.grid, job.weight.shape[1:], job.weight.dtype, content.hexdigest())
    expected = {str(i): form for i, form in enumerate(_forms(job, stop - start))}
    found = remembered(key, expected, lambda: dict(zip(expected, _encoded(job, start, stop), strict=True)))
    return [found[name] for name in expected]


def _forms(job: _Job, rows: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of the packed numbers, scales and zero points of so many rows."""
    *inner, width = job.weight.shape[1:]
    groups = width // job.grid.group
    found = [(width * job.grid.stored // 8, torch.uint8), (groups, job.weight.dtype), (groups, torch.uint8)]
    return [((rows, *inner, n), dtype) for n, dtype in (found[:2] if job.grid.symmetric else found)]


def _encoded(job: _Job, start: int, stop: int) -> list[Tensor]:
    expected = _forms(job, stop - start)
    found = [torch.empty(math.prod(shape[:-1]), shape[-1], dtype=dtype) for shape, dtype in expected]

    def put(at: int, parts: tuple[Tensor, ...]) -> None:
        for whole, part in zip(found, parts, strict=True):
            whole[at : at + len(part)] = part

    pieces, at = job.weight.pieces(start, stop), 0
    if job.grid.method == "hqq":  # a search: it takes many times as long as the way to a worker
        items = (piece.read().contiguous() for piece in pieces)
        for parts in pool().each(_packed, pool().share(job.grid), items, held_bytes=_HELD_BYTES):
            put(at, parts)
            at += len(parts[0])
    else:
        in_threads(lambda placed: put(placed[0], _packed(job.grid, placed[1].read())), _placed(pieces))
    return [whole.reshape(shape) for whole, (shape, _) in zip(found, expected, strict=True)]


def _packed(grid: Grid, values: Tensor) -> tuple[Tensor, ...]:
    codes, *rest = encode(values, grid)
    return pack(codes, grid.stored), *(part for part in rest if part is not None)


def _placed(pieces: Iterator[Piece]) -> Iterator[tuple[int, Piece]]:
    """Each piece with its first row."""
    at = 0
    for piece in pieces:
        yield at, piece
        at += piece.rows
        del piece  # the next one is read beside it otherwise


_remembered = lru_cache(maxsize=1)(_block)  # a writer asks for the packed tensor and for its scales in turn


# ---------------------------------------------------------------------- methods
def encode(values: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scales and zero points of `values [..., in]`, such that `(code - zero) * scale` is near them.

    Rounding to nearest (`rtn`) lets each group's number of largest magnitude be the lowest code of a symmetric grid, by
    a scale that is negative where that number is positive: the lowest code lies one step further out than the highest,
    so this wastes nothing. With `positive_scales` the larger side decides, in steps of its own; TensorRT reads only
    such scales inside its products. An asymmetric grid spans from the smallest to the largest number, and 0 is always
    on it.

    `hqq` takes turns, from several scales: it splits each group's error into a part that is sparse and dropped, by the
    shrinkage that belongs to the l_p norm, and one that the zero point and, by least squares, the scale make up for
    (half-quadratic quantization, Badri and Shaji 2023). Errors are measured in steps of the grid; zero points are whole
    numbers, as the kernels take them. A group keeps what it had whenever that leaves it a smaller squared error, so
    none is worse than rounded.

    Returns:
        uint8 `[..., in]`; scales `[..., in/group]` in `values`' dtype; zero points as uint8, None on symmetric grids.
    """
    exact = torch.promote_types(values.dtype, torch.float32)
    groups = values.to(exact).reshape(*values.shape[:-1], -1, grid.group)
    scale, zero = fit(groups, grid, values.dtype)
    return as_stored(nearest(groups, scale, zero, grid.bits).flatten(-2), scale, zero, values.dtype, grid)


def fit(groups: Tensor, grid: Grid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and zero point `[…, 1]` of numbers `[…, group]` in float32 or wider: by rounding, or refined with `hqq`;
    scales are rounded to the dtype that they are kept in."""
    scale, zero = _rounding(groups, grid, dtype)
    return _refined(groups, scale, zero, grid, dtype) if grid.method == "hqq" else (scale, zero)


def as_stored(
    codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype, grid: Grid
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes `[…, in]`, scales and zero points `[…, groups, 1]` as they are stored, see `encode`."""
    scale = scale.squeeze(-1).to(dtype)
    if grid.symmetric:
        more = 2 ** (grid.stored - 1) - 2 ** (grid.bits - 1)
        return _bytes(codes + more if more else codes), scale, None
    return _bytes(codes), scale, zero.squeeze(-1).to(torch.uint8)


def _bytes(codes: Tensor) -> Tensor:
    """Whole numbers from 0 to 255 as uint8, by a detour for which processors have instructions."""
    return codes.to(torch.int16).to(torch.uint8)


def _rounding(groups: Tensor, grid: Grid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and zero point `[..., groups, 1]` that no number of a group exceeds; the scale is rounded to the dtype that
    it is kept in."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)  # aminmax takes several times as long
    middle = 2 ** (grid.bits - 1)
    if grid.symmetric:
        scale = (
            torch.maximum(high / (middle - 1), low / -middle)
            if grid.positive_scales
            else torch.where(high > -low, high, low) / -middle
        )
        scale = scale.to(dtype).to(groups.dtype)
        return _divisor(scale) if grid.positive_scales else scale, torch.full_like(scale, middle)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / (2**grid.bits - 1)).to(dtype).to(groups.dtype)
    return scale, (-low / _divisor(scale)).round().clamp(0, 2**grid.bits - 1)


def _divisor(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1, scale)  # a group of zeros, or one below the dtype's smallest number


def nearest(groups: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest codes, as floats."""
    return (groups / _divisor(scale)).round_().add_(zero).clamp_(0, 2**bits - 1)


def _refined(groups: Tensor, scale: Tensor, zero: Tensor, grid: Grid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of all scales and zero points that the solver comes through, each group's with the smallest squared error."""
    best, least = (scale, zero), torch.full_like(scale, math.inf)
    for start in _STARTS:
        s, z, beta = (scale * start).to(dtype).to(scale.dtype), zero, _BETA
        for _ in range(_STEPS + 1):
            codes = nearest(groups, s, z, grid.bits)
            error = groups - (codes - z) * s
            squares = error.square().sum(-1, keepdim=True)
            better = (squares < least) & (s > 0) if grid.positive_scales and grid.symmetric else squares < least
            best = torch.where(better, s, best[0]), torch.where(better, z, best[1])
            least = torch.where(better, squares, least)
            s, z = _step(groups, codes, error, s, z, beta, grid)
            s, beta = s.to(dtype).to(scale.dtype), beta * _KAPPA
    return best


def _step(
    groups: Tensor, codes: Tensor, error: Tensor, scale: Tensor, zero: Tensor, beta: float, grid: Grid
) -> tuple[Tensor, Tensor]:
    """The next scale and zero point, once what shrinkage takes for sparse is left out of the numbers."""
    steps = error / _divisor(scale)
    size = steps.abs()
    sparse = steps.sign() * (size - size.clamp(min=1e-6).pow(_NORM - 1) / beta).clamp_(min=0)
    dense = groups - sparse * scale
    if not grid.symmetric:
        zero = (codes - dense / _divisor(scale)).mean(-1, keepdim=True).round_().clamp_(0, 2**grid.bits - 1)
    places = codes - zero
    weight = places.square().sum(-1, keepdim=True)
    return torch.where(weight == 0, scale, (dense * places).sum(-1, keepdim=True) / _divisor(weight)), zero
