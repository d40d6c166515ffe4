"""The kinds of state that a layer of transformers' cache may hold, and their names in a decoder's signature.

A kind more is a row of `KINDS`; and where the layer that holds it looks at its values, or writes in place, a layer of
its own in `moec.huggingface.states.functional_cache`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from moec.program.decoder_signature import PROMPT


@dataclass(frozen=True)
class Kind:
    """One kind of state.

    Attributes:
        what: what a signature calls it.
        attribute: where a layer of transformers' cache has it.
        axis: the dimension that counts tokens; None for a state that has one shape for good.
        numbered: whether a layer may have several, by number; the first has no number in its name.
    """

    what: str
    attribute: str
    axis: int | None = None
    numbered: bool = False

    def held(self, layer: Any) -> Iterator[tuple[str, Tensor]]:
        """The states of this kind in a layer, by name within the layer."""
        found = getattr(layer, self.attribute, None)
        states = found.items() if self.numbered and found is not None else [(0, found)]
        yield from ((self.named(number), value) for number, value in states if isinstance(value, Tensor))

    def named(self, number: int) -> str:
        """What the signature calls the state of this number."""
        return f"{self.what}_{number}" if number else self.what


KINDS = (
    Kind("key", "keys", 2),
    Kind("value", "values", 2),
    Kind("index_key", "indexer_keys", 1),  # of sparse attention (DeepSeek-V3.2, GLM-5): [batch, tokens, size]
    Kind("block_key", "idx_keys", 2),  # of an index over blocks of tokens (MiniMax-M3): [batch, 1, tokens, size]
    Kind("conv_state", "conv_states", numbered=True),  # a convolution's last inputs: [batch, channels, kernel]
    Kind("recurrent_state", "recurrent_states", numbered=True),  # [batch, heads, ...]
    Kind(PROMPT, PROMPT),  # of a window that never moves off the prompt (Unlimited-OCR): [batch]
)


def kind_of(what: str) -> tuple[Kind, int]:
    """The kind and the number of a state, from what the signature calls it."""
    name, _, number = what.rpartition("_")
    named = number.isdigit() and any(kind.what == name for kind in KINDS)
    return next(k for k in KINDS if k.what == (name if named else what)), int(number) if named else 0


def states_of(layer: Any) -> dict[str, tuple[Tensor, Kind]]:
    """All states that a layer holds, by name within the layer, in the order of `KINDS`."""
    return {what: (value, kind) for kind in KINDS for what, value in kind.held(layer)}


def put(layer: Any, what: str, value: Tensor) -> None:
    """Let a layer hold a state."""
    kind, number = kind_of(what)
    if kind.numbered:
        getattr(layer, kind.attribute)[number] = value
    else:
        setattr(layer, kind.attribute, value)


def is_of_a_model(layer: Any) -> bool:
    """Whether a layer of a cache is none of those that transformers has for all models."""
    return layer is not None and type(layer).__module__ != "transformers.cache_utils"


def unknown_state(layer: Any) -> str:
    """Where a layer holds a tensor that is no state of a known kind; empty where all are."""
    known = {kind.attribute for kind in KINDS}
    held = {name: value.values() if isinstance(value, dict) else (value,) for name, value in vars(layer).items()}
    tensors = (n for n, values in held.items() if any(isinstance(v, Tensor) and v.numel() for v in values))
    return next((name for name in tensors if name not in known), "")
