"""Dense models on paper to hold a mixture against: its own layers, with one network where the experts were."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from moec.planning.dense_equivalent import dense_equivalent
from moec.planning.shape import Shape, Tensor
from moec.shown import count_of

MOST = 2**16  # the largest batch that a search looks at


@dataclass(frozen=True)
class Rival:
    """A dense model, or another one, that a model is held against.

    Attributes:
        shape: its counts.
        words: what it is, for a sentence. short: the same for a legend.
    """

    shape: Shape
    words: str
    short: str


def dense_twin(shape: Shape, parameters: float) -> Shape:
    """The mixture with a dense FFN in place of every router and its experts, as wide as the parameters ask for.

    Attention, tables, shared experts and state stay as they are, so that only what the experts change is compared;
    what sees and hears is left out, since no token of a text uses it.

    Args:
        shape: a mixture.
        parameters: of the dense model in all; more than what is left without the experts.

    Raises:
        ValueError: when that leaves nothing for the networks.
    """
    kept = [t for t in shape.tensors if t.part not in ("router", "vision and audio")]
    rest = sum(t.count for t in kept if t.part != "routed experts")
    routed = shape.parts()["routed experts"]
    if not routed or parameters <= rest:
        raise ValueError(f"{shape.name} has {rest:,} parameters beside its experts; {parameters:,.0f} leave none")
    share = (parameters - rest) / routed
    tensors = tuple(_widened(t, share, shape.hidden) for t in kept)
    return replace(shape, name=f"dense, {count_of(parameters)}", tensors=tensors, mixtures=(), multi_token=0)


def _widened(tensor: Tensor, share: float, hidden: int) -> Tensor:
    """A stack of experts as one matrix with that share of their numbers; the side that is not H takes it."""
    if tensor.part != "routed experts":
        return tensor
    *stack, rows, columns = tensor.shape if len(tensor.shape) > 1 else (*tensor.shape, 1)
    times = math.prod(stack) * share
    wide = (rows, round(times * columns)) if rows == hidden else (round(times * rows), columns)
    codes, scales = round(share * tensor.codes), round(share * tensor.scales)
    return replace(tensor, shape=wide, part="dense FFN", codes=codes, scales=scales)


def rivals(shape: Shape, versus: Shape | None = None) -> tuple[Rival, ...]:
    """Whom to compare with: the model that was named, else for a mixture the dense model of its active parameters and
    the one of its quality by folklore, the root of active times total; nobody for a dense model."""
    if versus is not None:
        return (Rival(versus, f"{versus.name} ({count_of(versus.total)})", versus.name),)
    equivalent = dense_equivalent(shape)
    if equivalent is None:
        return ()
    active, alike = float(shape.active), equivalent.by_quality
    return (
        Rival(
            dense_twin(shape, active),
            f"a dense model of its active parameters ({count_of(active)})",
            f"dense, as many active ({count_of(active)})",
        ),
        Rival(
            dense_twin(shape, alike),
            f"a dense model that folklore calls as good ({count_of(alike)}, the root of active times total)",
            f"dense, as good by folklore ({count_of(alike)})",
        ),
    )


def first_batch(holds: Callable[[int], bool], most: int = MOST) -> int | None:
    """The smallest batch from which something holds, looked for by doubling and halving; None up to `most`."""
    high = 1
    while not holds(high):
        if high >= most:
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def changes(first: Callable[[int], float], other: Callable[[int], float], most: int = 1024) -> list[int]:
    """Batches at which it changes which of two costs is the smaller one, each the first of the new order."""
    found, batch = [], 1
    less = first(1) < other(1)
    while batch < most:
        if (first(2 * batch) < other(2 * batch)) != less:
            low, high = batch, 2 * batch
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if (first(middle) < other(middle)) != less else (middle, high)
            found.append(high)
            less = not less
        batch *= 2
    return found
