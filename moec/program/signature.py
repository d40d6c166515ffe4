"""Named inputs: dtypes, and shapes with named dynamic dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

PLUS = " + "  # between the names of a dimension that is a sum


@dataclass(frozen=True)
class Input:
    """One named input: its dtype and its shape.

    A dynamic dimension is a name or a sum of names (`past_sequence + sequence`), a fixed one a number.
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
        return tuple(sum(sizes[part] for part in d.split(PLUS)) if isinstance(d, str) else d for d in self.shape)


def identifier(name: str) -> str:
    """A name of an input or a dimension as Python can write it."""
    return name.replace(PLUS, "_plus_").replace(".", "_")


def dynamic_dimensions(inputs: Iterable[Input]) -> list[str]:
    """Names of the dynamic dimensions in order of appearance; a sum counts as its parts."""
    return list(dict.fromkeys(part for i in inputs for d in i.shape if isinstance(d, str) for part in d.split(PLUS)))


def sizes_of(inputs: Iterable[Input], sample: Mapping[str, object]) -> dict[str, int]:
    """The dynamic dimensions of a sample, by name; sums follow from their parts."""
    found: dict[str, int] = {}
    for spec in inputs:
        for name, size in zip(spec.shape, getattr(sample[spec.name], "shape", ()), strict=True):
            if isinstance(name, str) and PLUS not in name:
                found[name] = int(size)
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
