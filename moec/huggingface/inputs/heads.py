"""Heads of classifiers that torch.export would not take as they are written, and what they ask of their inputs."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ONE_TEXT = "Cannot handle batch sizes > 1"  # what transformers' classifiers say when they know no padding
_SAME_ENDS = "same number of <eos> tokens"


def takes_one_text(model: Any) -> bool:
    """Whether a classifier of a decoder takes one text at a time, since its config has no `pad_token_id`."""
    config = model.config.get_text_config()
    return getattr(config, "pad_token_id", None) is None and _ONE_TEXT in _forward_source(model)


def pools_at_end(model: Any) -> bool:
    """Whether a classifier reads the last hidden state at the end token, which each text must have as often."""
    return _SAME_ENDS in _forward_source(model)


def _forward_source(model: Any) -> str:
    try:
        return textwrap.dedent(inspect.getsource(type(model).forward))
    except (OSError, TypeError):  # no file holds it
        return ""


class PoolAtEnd(TorchFunctionMode):
    """Within it, `hidden[mask, :]` is each row's hidden state at the last place that the mask has, `[batch, width]`.

    Classifiers of BART and T5 choose the hidden states of all end tokens, make `[batch, ends, width]` of them, and
    take the last. How many there are depends on the tokens, so torch.export cannot say the shape. Only the last counts,
    and it can be gathered. The same number of ends in each row, on which they insist, is then not asked for. A row
    without an end, for which they raise an error, becomes NaN.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.unique_consecutive:
            return args[0][:1]
        if func is Tensor.__getitem__ and _chooses_by_mask(args):
            return _last(args[0], args[1][0])
        return func(*args, **(kwargs or {}))


def _chooses_by_mask(args: tuple[Any, ...]) -> bool:
    value, index = args[0], args[1]
    return (
        isinstance(index, tuple)
        and len(index) == 2
        and isinstance(index[0], Tensor)
        and index[0].dtype == torch.bool
        and index[0].dim() == 2
        and value.dim() == 3
        and index[1] == slice(None)
    )


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    """The row of `hidden` `[batch, length, width]` at the last true place of `mask` `[batch, length]`; NaN without
    one."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = (places * mask).amax(1)
    index = (last - 1).clamp(min=0)[:, None, None].expand(-1, 1, hidden.shape[2])
    found = hidden.gather(1, index).squeeze(1)
    return torch.where((last > 0)[:, None], found, torch.nan)
