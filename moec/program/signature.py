"""Named inputs: dtypes, and shapes with named dynamic dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

PLUS = " + "  # between the names of a dimension that is a sum
PER = " // "  # before the number of places that one of a dimension stands for


@dataclass(frozen=True)
class Input:
    """One named input: its dtype and its shape.

    A dynamic dimension is a name, a sum of names (`past_sequence + sequence`) or so many whole parts of either
    (`past_sequence // 4`: one for every 4), a fixed one a number.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    @property
    def identifier(self) -> str:
        """The name as Python can write it: what the graph's placeholder is called."""
        return identifier(self.name)

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with the dynamic dimensions' sizes put in."""
        return tuple(size_of(d, sizes) if isinstance(d, str) else d for d in self.shape)


def identifier(name: str) -> str:
    """A name of an input or a dimension as Python can write it."""
    return name.replace(PLUS, "_plus_").replace(PER, "_per_").replace(".", "_")


def names_in(dimension: str) -> list[str]:
    """The names of which a dynamic dimension is made; one that is no sum and no part has its own alone."""
    return dimension.partition(PER)[0].split(PLUS)


def is_computed(dimension: str) -> bool:
    """Whether a dimension follows from others."""
    return PLUS in dimension or PER in dimension


def per(dimension: str) -> int:
    """How many places one of a dimension stands for."""
    return int(dimension.partition(PER)[2] or 1)


def size_of(dimension: str, sizes: Mapping[str, int]) -> int:
    """A dynamic dimension's size. Raises KeyError where that of a name in it is not given."""
    return sum(sizes[name] for name in names_in(dimension)) // per(dimension)


def dynamic_dimensions(inputs: Iterable[Input]) -> list[str]:
    """Names of the dynamic dimensions in order of appearance; a sum counts as its parts."""
    return list(dict.fromkeys(name for i in inputs for d in i.shape if isinstance(d, str) for name in names_in(d)))


def sizes_of(inputs: Iterable[Input], sample: Mapping[str, object]) -> dict[str, int]:
    """The dynamic dimensions of a sample, by name; of one that stands in sums alone, what their other parts leave."""
    found, sums = dict[str, int](), dict[str, int]()
    for spec in inputs:
        for name, size in zip(spec.shape, getattr(sample[spec.name], "shape", ()), strict=True):
            if isinstance(name, str) and per(name) == 1:
                (sums if is_computed(name) else found)[name] = int(size)
    for name, size in sums.items():
        match [part for part in names_in(name) if part not in found]:
            case [part]:
                found[part] = size - sum(found[other] for other in names_in(name) if other != part)
    return found


def converted(inputs: Iterable[Input], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with the floating ones in the dtypes that these inputs have, so that one sample serves engines of every
    precision."""
    dtypes = {i.name: i.dtype for i in inputs if i.dtype.is_floating_point}
    return {
        name: value.to(dtypes[name]) if name in dtypes and value.is_floating_point() else value
        for name, value in given.items()
    }


Sample = Mapping[str, Tensor]
