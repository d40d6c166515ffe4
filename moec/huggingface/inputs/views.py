"""Sizes that a model leaves to `view` to find (-1), said outright where they are plain numbers; and views that are
turned round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PlainViews(TorchFunctionMode):
    """Within it, `x.view(*x.shape[:-1], -1, 8)` has the number of heads as a number.

    torch.export divides all sizes by all others to find the one that is left open. Where images have any size, the
    result is a fraction that it does not reduce, and nobody can tell that a model has 4 heads. Leading sizes that stay
    what they are need not be divided by.

    And a view whose elements lie over each other (windows of a text, by `unfold`) is written out before it is turned
    round: the form of the result follows from which stride is larger, of which one is the text's length.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.view, Tensor.reshape, torch.reshape) and not kwargs:
            shape = tuple(args[1]) if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
            if all(isinstance(size, int | torch.SymInt) for size in shape):
                return func(args[0], plain(tuple(args[0].shape), shape))
        if func in (Tensor.flip, torch.flip):
            return func(args[0].clone(memory_format=torch.contiguous_format), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def plain(old: tuple[Any, ...], new: tuple[Any, ...]) -> tuple[Any, ...]:
    """The new shape, its -1 replaced by a number where the sizes after the equal leading ones are numbers."""
    if not any(isinstance(size, int) and size == -1 for size in new):
        return new
    same = next(
        (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if not _equal(a, b)), min(len(old), len(new))
    )
    left, wanted = old[same:], new[same:]
    if not all(isinstance(size, int) for size in (*left, *wanted)) or wanted.count(-1) != 1:
        return new
    known = prod(size for size in wanted if size != -1)
    return new if not known else (*new[:same], *(prod(left) // known if size == -1 else size for size in wanted))


def _equal(a: Any, b: Any) -> bool:
    """Whether two sizes are the same expression; asking torch would make a guard of it."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return bool(a.node.expr == b.node.expr)
