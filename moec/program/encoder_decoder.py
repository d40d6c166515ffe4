"""The signature of an encoder-decoder in two parts, which write text together: names as optimum's clients read them.

The encoder runs once a text. The decoder keeps the keys and values of its own tokens, and those that it makes of the
encoder's states: what of these the cache holds already is taken from it, and only the rest is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from moec.program.decoder_signature import IDS, PAST, PAST_ENCODER, SEQUENCE, STATES, is_past
from moec.program.signature import Input

ENCODER, DECODER = PARTS = ("encoder", "decoder")
DECODER_IDS, ENCODER_SEQUENCE, LAST = "decoder_input_ids", "encoder_sequence", "last_hidden_state"


def cross_names(layer: int, whose: str) -> tuple[str, str]:
    """Names of a layer's cache inputs for tokens of the `encoder` or the `decoder`: keys, values."""
    return f"past_key_values.{layer}.{whose}.key", f"past_key_values.{layer}.{whose}.value"


def is_cross(name: str) -> bool:
    """Whether a cache input or output holds keys or values of the encoder's states."""
    return f".{ENCODER}." in name


def cross_inputs(inputs: Iterable[Input]) -> list[Input]:
    """The inputs that hold keys and values of the encoder's states; none where there is no encoder."""
    return [i for i in inputs if PAST_ENCODER in i.shape]


def caches_of(inputs: Iterable[Input]) -> list[Input]:
    """Every cache input of a decoder beside an encoder: of its own tokens, and of the encoder's states."""
    return [i for i in inputs if is_past(i.name)]


def is_cross_decoder(inputs: Sequence[Input]) -> bool:
    """Whether these are the inputs of the decoder of an encoder-decoder, with both caches."""
    names = {i.name for i in inputs}
    return {IDS, STATES} <= names and bool(cross_inputs(inputs))


def with_encoder(names: Iterable[str], sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes with those of the encoder's states, where the dimensions `names` have them: a text as long as the tokens
    and a little longer, all of it in the cache once the decoder has a token there, and nothing of it before."""
    if PAST_ENCODER not in names:
        return dict(sizes)
    length = sizes.get(ENCODER_SEQUENCE, sizes.get(PAST, 0) + sizes.get(SEQUENCE, 1) + 2)
    return {ENCODER_SEQUENCE: length, PAST_ENCODER: length if sizes.get(PAST) else 0, **sizes}
