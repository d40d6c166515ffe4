"""A model's forward, or a part of it, as a function of a signature's inputs by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from moec.frontend.from_exported import named_outputs
from moec.huggingface.inputs.heads import PoolAtEnd, pools_at_end
from moec.huggingface.inputs.known_values import KnownValues
from moec.huggingface.inputs.lengths_of_tensors import open_lengths
from moec.huggingface.inputs.signature import Signature
from moec.huggingface.inputs.views import PlainViews
from moec.huggingface.operators.masks import masks_by_broadcast
from moec.huggingface.states.cache import cached_call
from moec.huggingface.states.encoder_decoder_call import decoder_call, encoder_call, untouched_decoder_call
from moec.huggingface.states.token_by_token import forgets_states, token_by_token
from moec.huggingface.states.vision_language_call import FEATURES, seeing_call
from moec.program.decoder_signature import cache_inputs
from moec.program.encoder_decoder import DECODER, ENCODER, caches_of

_NOT_RESULTS = ("loss", "router_logits", "cache", "past_key_values", "rope_deltas")


def named_call(
    forward: Callable[..., Any], always: Mapping[str, Tensor] | None = None
) -> Callable[..., dict[str, Tensor]]:
    """A model's forward, without cache, that returns its tensors by name: no losses, caches or router logits. Every
    call has the tensors `always`."""
    fixed: dict[str, Any] = {"use_cache": False} if "use_cache" in inspect.signature(forward).parameters else {}
    fixed |= always or {}
    found = results if getattr(forward, "__name__", "") != FEATURES else _features

    def call(**inputs: Tensor) -> dict[str, Tensor]:
        return found(forward(**inputs, **fixed))

    return call


def call_of(model: Any, signature: Signature, captured: bool = False) -> Callable[..., dict[str, Tensor]]:
    """The model's forward, or a part of it, as a function of the signature's inputs by name; `captured`: in
    the form that one graph has for every size, see `cached_call` and `decoder_call`."""
    if signature.image is not None:
        return seeing_call(model, signature.part, signature.inputs, signature.image, signature.fixed, captured)
    if signature.part == ENCODER:
        return encoder_call(model)
    if signature.part == DECODER:
        decoder = decoder_call if captured else untouched_decoder_call
        return decoder(model, model.forward, caches_of(signature.inputs))
    caches = cache_inputs(signature.inputs)
    forward = getattr(model, signature.method)
    if not caches:
        return named_call(forward, signature.fixed)
    call = cached_call(forward, caches, captured, model)
    return call if captured or not forgets_states(model) else token_by_token(call, caches)


def results(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a `ModelOutput` that are results."""
    return {k: v for k, v in output.items() if isinstance(v, Tensor) and not any(word in k for word in _NOT_RESULTS)}


def _features(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """The features of images, of each by itself: where there are several, a number stands behind the name."""
    return {name: value for name, value in named_outputs(dict(output)).items() if "attentions" not in name}


def expose(model: Any, signature: Signature) -> None:
    """Replace the forward of a captured copy by one with exactly the named inputs, so that torch.export sees those and
    no others."""
    forward, pooled = call_of(model, signature, captured=True), pools_at_end(model)
    known = bool(signature.fixed)
    for module in model.modules():  # some forwards take use_cache only from the config
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = bool(cache_inputs(signature.inputs))
    names = [inspect.Parameter(i.identifier, inspect.Parameter.POSITIONAL_OR_KEYWORD) for i in signature.inputs]
    original = {i.identifier: i.name for i in signature.inputs}

    def exposed(*args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        given = dict(zip(original, args, strict=False)) | kwargs
        with (
            open_lengths(model), PlainViews(), masks_by_broadcast(), PoolAtEnd() if pooled else nullcontext(),
            KnownValues() if known else nullcontext(),
        ):  # fmt: skip
            return forward(**{original[k]: v for k, v in given.items()})

    exposed.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
    model.forward = exposed
