"""Two models side by side: which one reads less for a token, and at which batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moec.planning.formats import Format
from moec.planning.load import UNIFORM, Load
from moec.planning.shape import Shape
from moec.planning.step import decode_step

BATCHES = tuple(2**k for k in range(11))  # 1 to 1,024


@dataclass(frozen=True)
class Beside:
    """Both models at one batch.

    Attributes:
        batch: texts at once.
        bytes: read for each token, by the one and the other.
        flops: computed for each token, likewise.
    """

    batch: int
    bytes: tuple[float, float]
    flops: tuple[float, float]


def beside(
    first: Shape,
    other: Shape,
    format: Format,
    context: int,
    batches: Sequence[int] = BATCHES,
    load: Load = UNIFORM,
) -> tuple[Beside, ...]:
    """Bytes and FLOPs of a decoded token of both models, in the same format and with the same context behind it; a
    measured load is that of the first."""
    found = []
    for batch in batches:
        models = ((first, load), (other, load.elsewhere()))
        steps = [decode_step(shape, format, batch, context, each) for shape, each in models]
        read = (steps[0].bytes / batch, steps[1].bytes / batch)
        found.append(Beside(batch, read, (steps[0].flops / batch, steps[1].flops / batch)))
    return tuple(found)
