"""What a decoder's signature looks like: a cache of keys and values in and out, and what absent inputs mean.

The names and dimensions are those that transformers' own exports, optimum and onnxruntime-genai use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.program.signature import PLUS, Input

PAST, SEQUENCE = "past_sequence", "sequence"
TOTAL = f"{PAST}{PLUS}{SEQUENCE}"
IDS, MASK, TYPES, LOGITS = "input_ids", "attention_mask", "token_type_ids", "logits"


def past_names(layer: int) -> tuple[str, str]:
    """Names of a layer's cache inputs: keys, values; `[batch, key-value heads, past_sequence, head size]`."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def is_past(name: str) -> bool:
    """Whether an input holds keys or values of earlier tokens."""
    return name.startswith("past_key_values.")


def present_name(past: str) -> str:
    """The output that continues a cache input: the same heads, `past_sequence + sequence` long."""
    return past.replace("past_key_values", "present")


def is_present(output: str) -> bool:
    """Whether an output continues the cache."""
    return output.startswith("present.")


def cache_inputs(inputs: Sequence[Input]) -> list[Input]:
    """The inputs that hold keys and values of earlier tokens; none when the model is not a decoder with a cache."""
    return [i for i in inputs if PAST in i.shape]


def past_axis(spec: Input) -> int:
    """The dimension of a cache input that counts tokens."""
    return spec.shape.index(PAST)


def complete(inputs: Sequence[Input], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given inputs, an absent cache put in as an empty one and an absent mask as ones; absent types of tokens are
    zeros, as transformers has them.

    A cache is absent when none of its tensors is given. Other missing inputs stay missing.
    """
    caches, filled = cache_inputs(inputs), dict(given)
    ids = given.get(IDS)
    types = next((i for i in inputs if i.name == TYPES), None)
    if types is not None and TYPES not in given and getattr(ids, "ndim", 0) == len(types.shape):
        filled[TYPES] = torch.zeros(tuple(ids.shape), dtype=types.dtype)  # type: ignore[union-attr]
    if not caches or getattr(ids, "ndim", 0) != 2:
        return filled
    batch, length = (int(n) for n in ids.shape)  # type: ignore[union-attr]  # it has two dimensions
    if not any(c.name in given for c in caches):
        sizes = {"batch": batch, PAST: 0}
        filled |= {c.name: torch.zeros(c.resolve(sizes), dtype=c.dtype) for c in caches}
    first = filled.get(caches[0].name)
    axis = past_axis(caches[0])
    if MASK not in given and any(i.name == MASK for i in inputs) and getattr(first, "ndim", 0) > axis:
        filled[MASK] = torch.ones((batch, int(first.shape[axis]) + length), dtype=torch.int64)  # type: ignore[union-attr]
    return filled


def text_inputs(inputs: Sequence[Input], ids: Tensor) -> dict[str, Tensor]:
    """What a language model is given for tokens `[B, S]` without padding; an absent cache is an empty one."""
    dtypes = {i.name: i.dtype for i in inputs if i.name in (IDS, MASK)}
    return complete(
        inputs, {name: (ids if name == IDS else torch.ones_like(ids)).to(dtype) for name, dtype in dtypes.items()}
    )


def positions(mask: Tensor, length: int) -> Tensor:
    """Positions `[batch, length]` of the last `length` tokens: how many tokens that are not padding come before each.

    That is what transformers' `generate` computes, so that padding on either side leaves a text where it was.
    """
    return (mask.cumsum(-1) - 1).clamp(min=0)[:, -length:]


def without_padding(value: Tensor, sample: Mapping[str, Tensor]) -> Tensor:
    """An output of a decoder without what it says of padding, where each implementation may say what it likes.

    Args:
        value: `[batch, sequence, …]` or a cache `[batch, heads, past_sequence + sequence, head size]`.
        sample: the inputs; one without a cache is compared whole.

    Returns:
        `[tokens that are not padding, …]`.
    """
    if MASK not in sample or not any(name.startswith("past_key_values") for name in sample):
        return value
    mask, length = sample[MASK].bool(), sample[IDS].shape[1]
    if value.dim() == 4 and value.shape[2] == mask.shape[1]:
        return value.transpose(1, 2)[mask]
    return value[mask[:, -length:]] if value.dim() > 1 and value.shape[1] == length else value


def require_text_model(inputs: Sequence[Input], outputs: Sequence[str], name: str) -> None:
    """Raise M211 unless a signature is that of a language model: tokens in, and logits out."""
    known = {IDS, MASK, *(c.name for c in cache_inputs(inputs))}
    names = [i.name for i in inputs]
    if IDS not in names or not set(names) <= known or LOGITS not in outputs:
        what = f"no quality on text: it maps {', '.join(names[:3])} to {', '.join(outputs[:3])}"
        raise MoecError(
            "M211",
            what,
            name,
            f"--text is for causal language models, with {IDS} in and {LOGITS} over the vocabulary out",
        )
