"""A weight that is not in memory: its shape, its dtype and a way to read its rows; and one whose numbers are packed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

BLOCK_BYTES = 64 * 2**20
PIECE = 2**19  # numbers: 2 MiB in float32, and as much of what is computed from them
_smaller: list[int] = []  # one for each `blocks_of` that is under way; threads that read weights are meant, too


def block_bytes() -> int:
    """How much of a weight is read at a time."""
    return min([BLOCK_BYTES, *_smaller])


@contextmanager
def blocks_of(most_bytes: int) -> Iterator[None]:
    """Weights are read in blocks of so many bytes at most within; of one row at least."""
    _smaller.append(most_bytes)
    try:
        yield
    finally:
        _smaller.remove(most_bytes)


@dataclass(frozen=True)
class Piece:
    """Some rows `[rows, width]` of a weight, to be read where they are used; see `Weight.pieces`."""

    rows: int
    read: Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor that is not there yet.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        origin: the expression that it stands for, as text for people; equal text means equal content within one
            program. Nothing reads more out of it: what is to be decided by stands in the fields below.
        read: `read(start, stop)` returns rows `start` to `stop` of the leading dimension (a scalar ignores both).
        atomic: a part costs as much as the whole, so `blocks` does not cut it.
        coded: the codes and scales that it is decoded from, for a weight of a checkpoint that is quantized.
            Expressions that only move whole rows keep it, all others lose it.
        inputs: the weights that it is computed from; none for a tensor of a file or in memory.
        relaid: reading the checkpoint changed the order of its elements, since the model's code keeps them in another
            than `moec::experts` reads.
        by_rows: a few rows cost no more than their share, so that they may be read as few at a time as a processor's
            cache holds.
        member: of a stack, `member(e)` is `self[e]` as a weight whose rows can be read alone; None where a matrix of it
            can only be read as a whole.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    origin: str
    read: Callable[[int, int], Tensor]
    atomic: bool = False
    coded: PackedWeight | FloatCodes | None = None
    inputs: tuple[Weight, ...] = field(default=(), repr=False)
    relaid: bool = False
    by_rows: bool = False
    member: Callable[[int], Weight] | None = field(default=None, repr=False)

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> Tensor:
        """The whole tensor."""
        return self.read(0, self.shape[0] if self.shape else 1)

    def meta(self) -> Tensor:
        """A meta tensor of the same shape and dtype, for the graph."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def expression(self) -> Iterator[Weight]:
        """The weight and all those that it is computed from, each once."""
        seen, todo = {id(self)}, [self]
        while todo:
            yield (weight := todo.pop())
            new = {id(w): w for w in weight.inputs if id(w) not in seen}
            seen |= set(new)
            todo += new.values()

    def blocks(self, most_bytes: int | None = None) -> Iterator[Tensor]:
        """The tensor as consecutive blocks of rows of about `most_bytes`, or `block_bytes()`, each (at least one
        row)."""
        if not self.shape or self.atomic:
            yield self.load()
            return
        row_bytes = max(1, self.size_bytes // max(1, self.shape[0]))
        step = max(1, (most_bytes or block_bytes()) // row_bytes)
        for start in range(0, self.shape[0], step):
            yield self.read(start, min(start + step, self.shape[0]))

    def pieces(self, start: int, stop: int, numbers: int | None = None) -> Iterator[Piece]:
        """Rows as matrices `[rows, width]` of about so many numbers (`PIECE` by default) each, at least one row: what
        is computed of a piece stays in the processor's cache. Where few rows cost as much as many, these are cut from
        larger blocks, which are read when the first of them is asked for."""
        if 0 in self.shape:
            return
        if self.member is not None and len(self.shape) > 2:
            for e in range(start, stop):
                one = self.member(e)
                yield from one.pieces(0, one.shape[0], numbers)
            return
        width = self.shape[-1] if len(self.shape) > 1 else 1
        rows, few = max(1, (numbers or PIECE) // width), self.by_rows and len(self.shape) == 2
        block = max(1, block_bytes() // (math.prod(self.shape[1:]) * self.dtype.itemsize))
        step = max(1, stop - start) if self.atomic else rows if few else block
        for at in range(start, stop, step):
            end = min(at + step, stop)
            if few:
                yield Piece(end - at, partial(self.read, at, end))
            else:
                parts = torch.split(self.read(at, end).reshape(-1, width), rows)
                yield from (Piece(len(part), part.detach) for part in parts)
                del parts  # the next block is read beside it otherwise


@dataclass(frozen=True)
class PackedWeight:
    """A weight `[..., out, in]` as the integers, scales and zero points that `moec::dequantize` reads, all lazy.

    The one form of packed integers between checkpoints, quantization, programs and backends. Elsewhere are other things
    under other names: `moec.kernels.packed.ExpertCodes`, tensors on a device, as the kernels read them; `FloatCodes`,
    small floats.

    Attributes:
        packed: uint8 `[..., out, in * bits / 8]`, see `moec.dialect.pack`.
        scale: `[..., out, in / group]`.
        zero: uint8 like scale, or None for the symmetric grid.
        bits: 2, 4 or 8.
    """

    packed: Weight
    scale: Weight
    zero: Weight | None
    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it stands for."""
        return (*self.packed.shape[:-1], self.packed.shape[-1] * 8 // self.bits)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight that it stands for."""
        return self.scale.dtype

    @property
    def group(self) -> int:
        """Elements along `in` that share a scale."""
        return self.shape[-1] // self.scale.shape[-1]

    @property
    def size_bytes(self) -> int:
        """What it takes in a file, with zero points packed along their rows, each row in whole bytes."""
        if self.zero is None:
            return self.packed.size_bytes + self.scale.size_bytes
        *rows, groups = self.zero.shape
        return self.packed.size_bytes + self.scale.size_bytes + math.prod(rows) * -(-groups * self.bits // 8)

    @property
    def kind(self) -> str:
        """`4 bits in blocks of 64, symmetric`, for reports."""
        return f"{self.bits} bits in blocks of {self.group}, {'symmetric' if self.zero is None else 'with zero points'}"

    def parts(self) -> list[Weight]:
        """Codes, scales, and zero points if there are any."""
        return [self.packed, self.scale] + ([] if self.zero is None else [self.zero])

    def each(self, function: Callable[[Weight], Weight]) -> PackedWeight:
        """The same function of all parts: one that selects or moves whole rows."""
        zero = None if self.zero is None else function(self.zero)
        return PackedWeight(function(self.packed), function(self.scale), zero, self.bits)

    @staticmethod
    def joined(codes: Sequence[PackedWeight], move: Move) -> PackedWeight | None:
        """What moving the rows of these makes of their codes; None where they do not fit each other."""
        kinds = {(c.bits, *((p.shape[-1], p.dtype) for p in c.parts())) for c in codes}
        if len(kinds) != 1:
            return None
        packed, scale, *zero = (move(list(same)) for same in zip(*(c.parts() for c in codes), strict=True))
        return PackedWeight(packed, scale, zero[0] if zero else None, codes[0].bits)


@dataclass(frozen=True)
class FloatCodes:
    """A weight `[..., out, in]` as the small floats that `moec::dequantize_float` reads, all lazy.

    Attributes:
        codes: uint8. `fp8`: `[..., out, in]`; `nvfp4`: `[..., out, in / 2]`.
        scale: `fp8`: one number `[]`; `nvfp4`: E4M3 numbers as bytes, `[..., out, in / 16]`.
        overall: of `nvfp4`, one number `[]` for the whole weight.
        dtype: of the weight that it stands for.
        format: `fp8` or `nvfp4`.
    """

    codes: Weight
    scale: Weight
    overall: Weight | None
    dtype: torch.dtype
    format: str

    def parts(self) -> list[Weight]:
        """Codes, scales, and the number for all where there is one."""
        return [self.codes, self.scale] + ([] if self.overall is None else [self.overall])

    @property
    def kind(self) -> str:
        """For reports."""
        return self.format

    @staticmethod
    def joined(codes: Sequence[FloatCodes], move: Move) -> FloatCodes | None:
        """What moving the rows of these makes of their codes; None where they have other numbers for all rows."""
        first = codes[0]
        single = [part for part in first.parts() if not part.shape]
        if any([p for p in c.parts() if not p.shape] != single or c.format != first.format for c in codes):
            return None
        scale = move([c.scale for c in codes]) if first.scale.shape else first.scale
        return replace(first, codes=move([c.codes for c in codes]), scale=scale)


Move = Callable[[list[Weight]], Weight]  # of rows
