"""What a decoder's signature looks like: its states in and out, and what absent inputs mean.

A state is what a layer carries from token to token. It grows by a place for each token along `past_sequence` (keys and
values, keys of an index), or it has one shape for good (a convolution's last inputs, a recurrence's matrix). An input
`past_key_values.N.WHAT` holds it, an output `present.N.WHAT` continues it, and a text that begins has no places in a
state that grows, and zeros in one that does not. The names and dimensions are those that transformers' own exports,
optimum and onnxruntime-genai use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.program.signature import PLUS, Input, dynamic_dimensions, names_in, per

PAST, SEQUENCE = "past_sequence", "sequence"
TOTAL = f"{PAST}{PLUS}{SEQUENCE}"
PAST_ENCODER = "past_encoder_sequence"  # of a decoder beside an encoder, see `moec.program.encoder_decoder`
HELD = (PAST, PAST_ENCODER)  # dimensions that count what a cache holds: 0 at first
IDS, MASK, TYPES, LOGITS = "input_ids", "attention_mask", "token_type_ids", "logits"
POSITIONS = "position_ids"  # `[batch, sequence]`; beside images `[3, batch, sequence]`: time, height, width
EMBEDS = "inputs_embeds"  # `[batch, sequence, hidden]`, of a decoder that others make the vectors of tokens for
STATES, STATES_MASK = "encoder_hidden_states", "encoder_attention_mask"
GROWING, RECURRENT = ("key", "value"), ("conv_state", "recurrent_state")
PROMPT = "prompt_length"  # of a window that never moves off the prompt: its tokens; 0: those of the first call
_PAST, _PRESENT = "past_key_values.", "present."


def past_name(layer: int, what: str) -> str:
    """Name of one of a layer's states, as an input: `key`, `conv_state` and the like."""
    return f"{_PAST}{layer}.{what}"


def past_names(layer: int) -> tuple[str, str]:
    """Names of a layer's cache inputs: keys, values; `[batch, key-value heads, past_sequence, head size]`."""
    return past_name(layer, "key"), past_name(layer, "value")


def layer_of(name: str) -> tuple[int, str]:
    """The layer that a state belongs to, and which of its states it is: what `past_name` made a name of."""
    number, _, what = name.partition(".")[2].partition(".")
    return int(number), what


def is_past(name: str) -> bool:
    """Whether an input holds a state that earlier tokens left."""
    return name.startswith(_PAST)


def is_sum(name: str) -> bool:
    """Whether an input or output is a state that sums over all tokens: a recurrent one."""
    return name.endswith(f".{RECURRENT[1]}")


def present_name(past: str) -> str:
    """The output that continues a state: `past_sequence + sequence` long where it grows, else of the same shape."""
    return past.replace(_PAST, _PRESENT)


def is_present(output: str) -> bool:
    """Whether an output continues a state."""
    return output.startswith(_PRESENT)


def cache_inputs(inputs: Sequence[Input]) -> list[Input]:
    """The inputs that hold states of earlier tokens; none when the model is not a decoder with a cache."""
    return [i for i in inputs if is_past(i.name) or PAST in i.shape]


def growing_inputs(inputs: Sequence[Input]) -> list[Input]:
    """The states that get a place for each token: keys and values above all."""
    return [i for i in inputs if PAST in i.shape]


def fixed_inputs(inputs: Sequence[Input]) -> list[Input]:
    """The states whose shape is the same after every token; not those that get a place for every few, or for each of
    an encoder's."""
    return [i for i in inputs if is_past(i.name) and not set(dynamic_dimensions([i])) - {"batch"}]


def are_plain(inputs: Sequence[Input]) -> bool:
    """Whether each state of a decoder is one that many clients carry on: keys and values, windows of convolutions and
    recurrent states."""
    return all(layer_of(c.name)[1] in (*GROWING, *RECURRENT) for c in cache_inputs(inputs))


def past_axis(spec: Input) -> int:
    """The dimension of a growing state that counts tokens."""
    return spec.shape.index(PAST)


def new_tokens(given: Mapping[str, Any]) -> Any:
    """What a call has of new tokens: ids `[batch, sequence]`, or vectors `[batch, sequence, hidden]`; None without."""
    return given.get(IDS, given.get(EMBEDS))


def complete(inputs: Sequence[Input], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given inputs, absent states put in as those of a text that begins, and absent masks as ones, an encoder's
    among them; absent types of tokens are zeros, as transformers has them.

    States are absent when none of their tensors is given. Other missing inputs stay missing.
    """
    caches, filled = cache_inputs(inputs), dict(given)
    ids = new_tokens(given)
    types = next((i for i in inputs if i.name == TYPES), None)
    if types is not None and TYPES not in given and getattr(ids, "ndim", 0) == len(types.shape):
        filled[TYPES] = torch.zeros(tuple(ids.shape), dtype=types.dtype)  # type: ignore[union-attr]
    if not caches or getattr(ids, "ndim", 0) != (2 if IDS in given else 3):
        return filled
    batch, length = (int(n) for n in ids.shape[:2])
    if not any(c.name in given for c in caches):
        filled |= {c.name: torch.zeros(c.resolve(beginning(batch)), dtype=c.dtype) for c in caches}
    encoded = given.get(STATES)
    if STATES_MASK not in given and getattr(encoded, "ndim", 0) == 3 and any(i.name == STATES_MASK for i in inputs):
        filled[STATES_MASK] = torch.ones(tuple(encoded.shape[:2]), dtype=torch.int64)  # type: ignore[union-attr]
    growing = next(iter(growing_inputs(inputs)), None)
    first = filled.get(growing.name) if growing else None
    axis = past_axis(growing) if growing else 0
    if MASK not in given and any(i.name == MASK for i in inputs) and (not growing or getattr(first, "ndim", 0) > axis):
        past = int(first.shape[axis]) if growing else 0  # type: ignore[union-attr]
        filled[MASK] = torch.ones((batch, past + length), dtype=torch.int64)
    return filled


def told_prompt(inputs: Sequence[Input], batch: int, length: int) -> dict[str, Tensor]:
    """The states of texts that begin and have a prompt of so many tokens, however many the first call has; nothing for
    a decoder that makes no difference between a prompt and what follows."""
    caches = [c for c in inputs if is_past(c.name)]
    if not any(layer_of(c.name)[1] == PROMPT for c in caches):
        return {}
    begun = {c.name: torch.zeros(c.resolve(beginning(batch)), dtype=c.dtype) for c in caches}
    return {name: value + length if layer_of(name)[1] == PROMPT else value for name, value in begun.items()}


def beginning(batch: int) -> dict[str, int]:
    """The sizes of states before the first token of so many texts."""
    return {"batch": batch, **dict.fromkeys(HELD, 0)}


def text_inputs(inputs: Sequence[Input], ids: Tensor) -> dict[str, Tensor]:
    """What a language model is given for tokens `[B, S]` without padding; absent states are those of a text that
    begins."""
    dtypes = {i.name: i.dtype for i in inputs if i.name in (IDS, MASK)}
    return complete(
        inputs, {name: (ids if name == IDS else torch.ones_like(ids)).to(dtype) for name, dtype in dtypes.items()}
    )


def positions(mask: Tensor, length: int) -> Tensor:
    """Positions `[batch, length]` of the last `length` tokens: how many tokens that are not padding come before each.

    That is what transformers' `generate` computes, so that padding on either side leaves a text where it was.
    """
    return (mask.cumsum(-1) - 1).clamp(min=0)[:, -length:]


def without_padding(value: Tensor, sample: Mapping[str, Tensor], name: str, inputs: Sequence[Input]) -> Tensor:
    """An output of a decoder without what it says of padding, where each implementation may say what it likes.

    A state that does not grow is left out for texts that the call ends with padding.

    Args:
        value: `[batch, sequence, ...]`, or a state.
        sample: the inputs; one without a cache is compared whole.
        name: of the output. inputs: the decoder's.

    Returns:
        `[tokens that are not padding, ...]`, or `[texts, ...]` of a state that does not grow.
    """
    if MASK not in sample or not any(map(is_past, sample)):
        return value
    mask, length = sample[MASK].bool(), new_tokens(sample).shape[1]
    if is_present(name):
        axis, rate = growth(name, inputs)
        return value[mask[:, -1]] if axis is None else value.movedim(axis, 1)[in_rows(mask, rate)]
    return value[mask[:, -length:]] if value.dim() > 1 and value.shape[1] == length else value


def in_rows(tokens: Tensor, rate: int) -> Tensor:
    """Which of a growing state's rows are made of these tokens alone, bool `[batch, rows]`.

    Args:
        tokens: `[batch, past_sequence + sequence]`, bool.
        rate: how many tokens a row stands for; from 2 on it mixes in those of the row before.
    """
    if rate == 1:
        return tokens
    rows = tokens.shape[1] // rate
    whole = tokens[:, : rows * rate].view(len(tokens), rows, rate).all(-1)
    return whole & torch.cat([torch.ones_like(whole[:, :1]), whole[:, :-1]], 1)


def growth(output: str, inputs: Sequence[Input]) -> tuple[int | None, int]:
    """The dimension along which a state grows, None for one that does not, and how many tokens one of its rows stands
    for: `output` continues one of these inputs."""
    shape = next(i.shape for i in inputs if i.name == output.replace(_PRESENT, _PAST))
    return next(((k, per(str(d))) for k, d in enumerate(shape) if PAST in names_in(str(d))), (None, 1))


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
