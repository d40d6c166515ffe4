"""One thing of fixed value in an engine's file."""

from __future__ import annotations

from dataclasses import dataclass

from moec.weights.weight import Weight


@dataclass(frozen=True)
class Constant:
    """A weight, a table, a number in an operator, or an operator itself.

    Attributes:
        name: unique in the file. A weight that is written as the program has it has the program's name.
        dtype, shape: as the file states them; empty for a `text`.
        weight: its numbers, read when they are asked for; None for a `text`. Elements of four bits are read in pairs,
            as bytes.
        text: what is no number: an operator with the values that it reads, or a setting in words.
        lazy: whether it is computed from weights of the program, not a number that was worked out while lowering.
    """

    name: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    weight: Weight | None = None
    text: str = ""
    lazy: bool = False

    @property
    def form(self) -> tuple[str, tuple[int, ...]]:
        """Constants of equal form can be compared."""
        return self.dtype, self.shape
