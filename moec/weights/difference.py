"""Two lazy tensors side by side: whether they are equal bit for bit, and where not. One block of each is in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from moec.weights.weight import Weight

_COUNTED_BYTES = 2**20  # a block of `fingerprint`: its integers take eight bytes each


@dataclass(frozen=True)
class Place:
    """Where two tensors differ first.

    Attributes:
        row: along the leading dimension. index: of the element, all dimensions.
        expected, found: both values, as text.
    """

    row: int
    index: tuple[int, ...]
    expected: str
    found: str

    def __str__(self) -> str:
        where = f"{list(self.index)}" if self.index else "it"
        return f"{where} is {self.found}, not {self.expected}"


def first_difference(expected: Weight, found: Weight) -> Place | None:
    """Where two tensors of one shape and dtype differ first, None where they are equal bit for bit; every row of both
    is read once. Raises ValueError for different shapes or dtypes."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        raise ValueError(f"{expected.dtype}{list(expected.shape)} beside {found.dtype}{list(found.shape)}")
    start = 0
    for block in expected.blocks():
        stop = start + (len(block) if expected.shape else 1)
        other = found.read(start, stop)
        if not torch.equal(bits_of(block), bits_of(other)):
            differs = (bits_of(block) != bits_of(other)).reshape(-1)
            at = _unravel(int(differs.nonzero()[0]), tuple(block.shape))
            index = (at[0] + start, *at[1:]) if at else ()
            return Place(index[0] if index else 0, index, _shown(block[at]), _shown(other[at]))
        start = stop
    return None


def fingerprint(weights: Iterable[Weight]) -> tuple[int, int]:
    """Two sums over the bits of all elements, modulo 2**64: equal for the same elements in any order, over any number
    of tensors of one width."""
    first, second = 0, 0
    for weight in weights:
        for block in weight.blocks():
            for part in torch.split(bits_of(block).reshape(-1), _COUNTED_BYTES):
                wide = part.to(torch.int64)
                first, second = first + int(wide.sum()), second + int((wide * wide).sum())
    return first % 2**64, second % 2**64


def bits_of(tensor: Tensor) -> Tensor:
    """A tensor's elements as integers of the same width, so that NaN equals itself and -0.0 is not 0.0."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.dtype.itemsize])


def _unravel(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        place, at = divmod(place, size)
        index.append(at)
    return tuple(reversed(index))


def _shown(value: Tensor) -> str:
    number = value.float().item() if value.dtype.itemsize < 4 and value.is_floating_point() else value.item()
    return f"{number:.9g}" if isinstance(number, float) else str(number)
