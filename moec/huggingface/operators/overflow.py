"""What leaves the range of half precision is cut off, without a branch on data.

Layers of BART's kind ask `if not torch.isfinite(x).all(): x = torch.clamp(x, …)` (LongT5's `if torch.isinf(x).any()`)
where x is float16. Here both sides are computed, and a `where` chooses: it is the same for all numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from moec.errors import MoecError

_ASKED = {torch.isfinite: Tensor.all, torch.isinf: Tensor.any}  # what asks, and what sums the answers up

_REPORT = "compile in float32, and report this"


@contextmanager
def overflow_without_branch(model: nn.Module) -> Iterator[None]:
    """Within, a capture of a model in float16 has no such branch; any other model is captured as it is."""
    if all(weight.dtype != torch.float16 for weight in model.parameters()):
        yield
        return
    with _BothSides():
        yield


class _BothSides(TorchFunctionMode):
    """Says to the code that there was an overflow, and gives it, for the cut that follows, what `where` chooses."""

    def __init__(self) -> None:
        super().__init__()
        self._answers: list[tuple[Tensor, Tensor, Any]] = []  # an answer, of which tensor, and what asked
        self._cut: tuple[Tensor, Tensor] | None = None  # the tensor that is cut next, and where it is not to be

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        first = args[0] if args else None
        if self._cut is not None and not (func is torch.clamp and first is self._cut[0]) and func.__name__ != "__get__":
            self._cut = None  # what cleans up behind the error, such as the end of no_grad, comes by here, too
            raise MoecError("M207", "a branch on an overflow does something else than cut it off", "capture", _REPORT)
        if func is Tensor.__bool__ and isinstance(first, Tensor) and (found := self._answer(first)):
            x, all_well = found
            self._cut = x, first if all_well else first.logical_not()
            return not all_well
        result = func(*args, **(kwargs or {}))
        if func in _ASKED and isinstance(first, Tensor) and first.dtype == torch.float16:
            self._answers = [(result, first, func)]
        elif self._answers and first is self._answers[-1][0] and func is _ASKED.get(self._answers[-1][2]):
            self._answers.append((result, first, self._answers[-1][2]))
        elif func is torch.clamp and self._cut is not None and first is self._cut[0]:
            result, self._cut = torch.where(self._cut[1], first, result), None
        return result

    def _answer(self, asked: Tensor) -> tuple[Tensor, bool] | None:
        """The tensor that a branch asks about, and whether a yes means that all is well; None for any other branch."""
        if len(self._answers) != 2 or asked is not self._answers[1][0]:
            return None
        x, asks = self._answers[0][1], self._answers[0][2]
        self._answers = []
        return x, asks is torch.isfinite
