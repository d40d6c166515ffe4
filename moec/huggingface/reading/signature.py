"""Which inputs a Hugging Face model takes and which outputs moec compares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.frontend.source import Domain
from moec.huggingface.reading.cache import cached_call
from moec.program.decoder_signature import IDS, MASK, SEQUENCE, TOTAL, cache_inputs
from moec.program.program import Input

# odd, 2 or more, and unlike a model's own sizes: torch.export specialises sizes that look like constants
CAPTURE_SIZES = {"batch": 3, "sequence": 11, "decoder_sequence": 7, "past_sequence": 5}
_NOT_RESULTS = ("loss", "router_logits", "cache", "past_key_values", "rope_deltas")


@dataclass(frozen=True)
class Signature:
    """Inputs in order, with the values that each may take."""

    inputs: tuple[Input, ...]
    domains: dict[str, Domain]

    def dynamic(self) -> dict[str, tuple[str | None, ...]]:
        """The dynamic dimensions in the form that `capture` takes."""
        return {i.name: tuple(d if isinstance(d, str) else None for d in i.shape) for i in self.inputs}


def signature_of(model: Any, caches: Sequence[Input] = ()) -> Signature:
    """The signature of a `PreTrainedModel`, from its main input, its forward's parameters and the cache inputs that it
    is to have.

    Raises M206 for other modalities.
    """
    main: str = model.main_input_name
    if main == IDS:
        return _text(model, caches)
    if main == "pixel_values":
        return _image(model)
    raise MoecError(
        "M206",
        f"{type(model).__name__} takes {main!r}; moec knows models of token ids and of pixel values",
        "main_input_name",
        "wrap the model in an nn.Module and pass sample inputs",
    )


def _text(model: Any, caches: Sequence[Input]) -> Signature:
    config, parameters = model.config.get_text_config(), inspect.signature(model.forward).parameters
    vocabulary = Domain("token", int(config.vocab_size))
    if caches:
        mask = Input(MASK, torch.int64, ("batch", TOTAL))
        domains = {IDS: vocabulary, MASK: Domain("padding"), **{c.name: Domain("number") for c in caches}}
        return Signature((Input(IDS, torch.int64, ("batch", SEQUENCE)), mask, *caches), domains)
    fields = {IDS: vocabulary, MASK: Domain("mask")}
    if "token_type_ids" in parameters and getattr(config, "type_vocab_size", 0) > 1:
        fields["token_type_ids"] = Domain("type", int(config.type_vocab_size))
    inputs = [Input(name, torch.int64, ("batch", "sequence")) for name in fields]
    if model.config.is_encoder_decoder and "decoder_input_ids" in parameters:
        fields["decoder_input_ids"] = vocabulary
        inputs.append(Input("decoder_input_ids", torch.int64, ("batch", "decoder_sequence")))
    return Signature(tuple(inputs), fields)


def _image(model: Any) -> Signature:
    config = getattr(model.config, "vision_config", model.config)
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    shape = ("batch", int(getattr(config, "num_channels", 3)), int(height), int(width))
    return Signature((Input("pixel_values", torch.float32, shape),), {"pixel_values": Domain("number")})


def named_call(forward: Callable[..., Any]) -> Callable[..., dict[str, Tensor]]:
    """A model's forward, without cache, that returns its tensors by name: no losses, caches or router logits."""
    fixed = {"use_cache": False} if "use_cache" in inspect.signature(forward).parameters else {}

    def call(**inputs: Tensor) -> dict[str, Tensor]:
        return results(forward(**inputs, **fixed))

    return call


def call_of(model: Any, signature: Signature) -> Callable[..., dict[str, Tensor]]:
    """The model's forward as a function of the signature's inputs by name."""
    caches = cache_inputs(signature.inputs)
    return cached_call(model.forward, caches) if caches else named_call(model.forward)


def results(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a `ModelOutput` that are results."""
    return {k: v for k, v in output.items() if isinstance(v, Tensor) and not any(word in k for word in _NOT_RESULTS)}


def expose(model: Any, signature: Signature) -> None:
    """Replace the forward of a captured copy by one with exactly the named inputs, so that torch.export sees those and
    no others."""
    forward = call_of(model, signature)
    for module in model.modules():  # some forwards take use_cache only from the config
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = bool(cache_inputs(signature.inputs))
    names = [inspect.Parameter(i.identifier, inspect.Parameter.POSITIONAL_OR_KEYWORD) for i in signature.inputs]
    original = {i.identifier: i.name for i in signature.inputs}

    def exposed(*args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        given = dict(zip(original, args, strict=False)) | kwargs
        return forward(**{original[k]: v for k, v in given.items()})

    exposed.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
    model.forward = exposed
