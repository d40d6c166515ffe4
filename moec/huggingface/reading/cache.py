"""transformers' cache as flat tensors: keys and values in, keys and values out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.program.decoder_signature import IDS, LOGITS, MASK, PAST, past_names, positions, present_name
from moec.program.program import META, Input

_WAY_OUT = "compile its forward alone with --no-cache"


def has_cache(model: Any) -> bool:
    """Whether this is a decoder that transformers generates text with: it returns logits and takes
    `past_key_values`."""
    parameters = inspect.signature(model.forward).parameters
    decoder = not model.config.is_encoder_decoder and model.main_input_name == IDS
    return decoder and model.can_generate() and {"past_key_values", MASK, "position_ids"} <= set(parameters)


def cache_signature(model: Any) -> tuple[Input, ...]:
    """The cache inputs of a model on the meta device, found by running its forward there.

    Raises:
        MoecError: M206 when its cache holds anything but keys and values (linear attention, state spaces).
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    ids = torch.zeros((2, 3), dtype=torch.int64, device=META)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)
    except MoecError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise MoecError(
            "M206",
            f"{type(model).__name__} does not run with a cache of keys and values: {reason}",
            "past_key_values",
            _WAY_OUT,
        ) from error
    found: list[Input] = []
    layers: list[Any] = cache.layers
    for number, layer in enumerate(layers):
        if not getattr(layer, "is_initialized", False):
            continue  # a layer that shares another's keys and values
        tensors = (layer.keys, layer.values)
        if any(t is None or t.dim() != 4 or t.shape[2] != 3 for t in tensors):
            raise MoecError(
                "M206",
                f"{type(model).__name__} caches something else than keys and values",
                f"layer {number}",
                _WAY_OUT,
            )
        found += [
            Input(name, t.dtype, ("batch", t.shape[1], PAST, t.shape[3]))
            for name, t in zip(past_names(number), tensors, strict=True)
        ]
    if not found:
        raise MoecError("M206", f"{type(model).__name__} leaves its cache empty", "past_key_values", _WAY_OUT)
    return tuple(found)


def flat_cache(tensors: Mapping[str, Tensor]) -> Any:
    """A `DynamicCache` that holds these keys and values, every layer at its full length: windows are the mask's
    business."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class Layer(DynamicLayer):  # type: ignore[no-untyped-call]
        def get_seq_length(self) -> int:
            return self.keys.shape[-2]  # type: ignore[union-attr, no-any-return]  # the original asks whether it is empty, which fixes the length

    cache = DynamicCache()
    pairs = sorted({int(name.split(".")[1]) for name in tensors})
    for number in range(max(pairs) + 1):
        layer = Layer()  # type: ignore[no-untyped-call]
        if number in pairs:
            layer.keys, layer.values = (tensors[name] for name in past_names(number))
            layer.dtype, layer.device, layer.is_initialized = layer.keys.dtype, layer.keys.device, True
        cache.layers.append(layer)
    return cache


def cached_call(forward: Callable[..., Any], caches: Sequence[Input]) -> Callable[..., dict[str, Tensor]]:
    """A decoder's forward with flat tensors by name: `logits` and the present keys and values.

    Positions follow from the mask, as in transformers' `generate`.
    """

    def call(*, input_ids: Tensor, attention_mask: Tensor, **past: Tensor) -> dict[str, Tensor]:
        cache = flat_cache(past)
        places = positions(attention_mask, input_ids.shape[1])
        output = forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        )
        present = {}
        for spec in caches:
            layer = cache.layers[int(spec.name.split(".")[1])]
            present[present_name(spec.name)] = layer.keys if spec.name.endswith("key") else layer.values
        return {LOGITS: output.logits, **present}

    return call
