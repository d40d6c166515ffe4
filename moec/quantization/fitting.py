"""The pieces of `Sequential`, see `moec.workers.pool`: moments over parts of the text, matrices by rows, experts one by
one. Each is a function of plain data that computes the same wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice

import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect import Activation
from moec.quantization.gptq import descend, encode_with
from moec.quantization.grid import Grid
from moec.quantization.hessians import Arrivals, mean_of, squares
from moec.quantization.packed_result import Codes, as_packed, value_of
from moec.quantization.rounding import encode
from moec.workers.pool import Pool

ROWS = 256  # of a matrix, in one piece; whoever does it, so that the bytes are the same
PARTS = 4  # of a text, in one piece; so too
_SUMS = 3  # of squares, while a part is added
_COPIES = 6  # of a matrix in float32, while it is fitted


@dataclass(frozen=True)
class Block:
    """What all experts of a block share.

    Attributes:
        rule: what stands between an expert's matrices.
    """

    arrivals: Arrivals
    rule: Activation


@dataclass(frozen=True)
class Expert:
    """One expert.

    Attributes:
        number: in its block.
        first, second: its matrices `[F, H]` and `[H, I]`; the second is None where it is not to be fitted.
        bias: of the first `[F]`, or None.
        grids: of both; None for one that stays, or was fitted before.
    """

    number: int
    first: Tensor
    second: Tensor | None
    bias: Tensor | None
    grids: tuple[Grid | None, Grid | None]


@dataclass(frozen=True)
class Fitted:
    """A matrix on its grid.

    Attributes:
        codes: packed.
        rounded: whether nothing made it fit, so that it is rounded to nearest.
    """

    codes: Codes
    rounded: bool = False


# ---------------------------------------------------------------------- linear layers
def moments(pool: Pool, parts: Iterable[Tensor]) -> Tensor:
    """`second_moments`, `PARTS` of them in a piece: first these are added up in their order, then the pieces."""
    groups = _in_groups(parts)
    if (first := next(groups, None)) is None:
        return mean_of([])
    rows, width = sum(part.shape[:-1].numel() for part in first), first[0].shape[-1]
    held = 4 * (_SUMS * width * width + rows * width)
    return mean_of(pool.each(_squares, None, chain([first], groups), held_bytes=held))


def fit_matrix(pool: Pool, values: Tensor, shared: object, grid: Grid) -> Codes:
    """A matrix `[out, in]`, `ROWS` rows in a piece. shared: what `pool` gave for the factor of its inputs' moments;
    None for a grid that looks at no data."""
    items = ((rows, grid) for rows in values.split(ROWS))  # type: ignore[no-untyped-call]
    parts = list(pool.each(_rows, shared, items, held_bytes=_COPIES * 4 * min(len(values), ROWS) * values.shape[1]))
    codes, scales, zeros = zip(*parts, strict=True)
    return torch.cat(codes), torch.cat(scales), None if zeros[0] is None else torch.cat(zeros)


def _in_groups(parts: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    waiting = iter(parts)
    while group := list(islice(waiting, PARTS)):
        yield group


def _squares(_: None, group: list[Tensor]) -> tuple[Tensor, int]:
    total, count = squares(group[0])
    for part in group[1:]:
        more, rows = squares(part)
        total, count = total + more, count + rows
    return total, count


def _rows(given: Tensor | None, item: tuple[Tensor, Grid]) -> Codes:
    values, grid = item
    values = values.contiguous()
    return as_packed(encode(values, grid) if given is None else descend(values, given, grid), grid)


# ---------------------------------------------------------------------- experts
def fit_experts(pool: Pool, block: Block, experts: Iterable[Expert], sizes: tuple[int, int, int]) -> Iterator[
    tuple[Fitted | None, Fitted | None]
]:  # fmt: skip
    """Both matrices of each expert, in their order. sizes: H, F and I, of which follows what one holds in memory."""
    hidden, wide, inner = sizes
    held = 4 * (_COPIES * (hidden * wide + hidden * inner + hidden * hidden + inner * inner))
    yield from pool.each(_expert, pool.share(block), experts, held_bytes=held)


def _expert(block: Block, own: Expert) -> tuple[Fitted | None, Fitted | None]:
    """The second matrix reads what the first one, already on its grid, makes of the same inputs."""
    first, second, (one, two) = own.first.contiguous(), None, own.grids
    fitted = None if one is None else _fitted(first, partial(block.arrivals.first, own.number), one)
    if own.second is not None and two is not None:
        values = first if fitted is None or one is None else value_of(fitted.codes, one)
        hidden = partial(_hidden, _in_float32(values), own.bias, block.rule)
        second = _fitted(own.second.contiguous(), partial(block.arrivals.second, own.number, hidden), two)
    return fitted, second


def _fitted(values: Tensor, hessian: Callable[[], Tensor], grid: Grid) -> Fitted:
    if grid.method != "gptq":
        return Fitted(as_packed(encode(values, grid), grid))
    found = encode_with(values, hessian(), grid)
    rounded = found is None
    return Fitted(as_packed(found or encode(values, replace(grid, method="rtn")), grid), rounded)


def _in_float32(values: Tensor) -> Tensor:
    """A copy: what begins elsewhere in memory may be added up in another order."""
    return values.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _hidden(first: Tensor, bias: Tensor | None, rule: Activation, rows: Tensor) -> Tensor:
    return rule(F.linear(rows, first, bias))
