"""Which inputs a Hugging Face model takes and which outputs moec compares."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.files.inside import read_inside
from moec.frontend.account import FLAG
from moec.frontend.source import Domain
from moec.huggingface.reading.arguments import makes_decoder_ids
from moec.huggingface.reading.cache import cached_call
from moec.huggingface.reading.heads import PoolAtEnd, pools_at_end, takes_one_text
from moec.huggingface.reading.masks import masks_by_broadcast
from moec.huggingface.reading.views import PlainViews
from moec.program.decoder_signature import IDS, MASK, SEQUENCE, TOTAL, TYPES, cache_inputs
from moec.program.program import Input

# odd, 2 or more, and unlike a model's own sizes: torch.export specialises sizes that look like constants
CAPTURE_SIZES = {"batch": 3, "sequence": 11, "decoder_sequence": 7, "past_sequence": 5, "height": 71, "width": 103}
_NOT_RESULTS = ("loss", "router_logits", "cache", "past_key_values", "rope_deltas")


@dataclass(frozen=True)
class Signature:
    """Inputs in order, with the values that each may take."""

    inputs: tuple[Input, ...]
    domains: dict[str, Domain]

    def dynamic(self) -> dict[str, tuple[str | None, ...]]:
        """The dynamic dimensions in the form that `capture` takes."""
        return {i.name: tuple(d if isinstance(d, str) else None for d in i.shape) for i in self.inputs}


def signature_of(
    model: Any, caches: Sequence[Input] = (), leave_out: Container[str] = (), images: Path | None = None
) -> Signature:
    """The signature of a `PreTrainedModel`, from its main input, its forward's parameters and the cache inputs that it
    is to have.

    Args:
        model: its weights may be missing.
        caches: what `cache_signature` found.
        leave_out: names of inputs that the user does not want.
        images: folder with a `preprocessor_config.json`, where there is one.

    Raises M206 for other modalities, M201 where a main input is to be left out.
    """
    main: str = model.main_input_name
    needed = (IDS, MASK) if caches else (main,)
    unwilling = next((name for name in needed if name in leave_out), None)
    if unwilling is not None:
        fix = "leave out other inputs only"
        raise MoecError("M201", f"{type(model).__name__} does not run without {unwilling}", FLAG, fix)
    if main == IDS:
        return _text(model, caches, leave_out)
    if main == "pixel_values":
        return _image(model, images)
    raise MoecError(
        "M206",
        f"{type(model).__name__} takes {main!r}; moec knows models of token ids and of pixel values",
        "main_input_name",
        "wrap the model in an nn.Module and pass sample inputs",
    )


def _text(model: Any, caches: Sequence[Input], leave_out: Container[str] = ()) -> Signature:
    config = model.config.get_text_config()
    vocabulary = Domain("token", int(config.vocab_size))
    if caches:
        mask = Input(MASK, torch.int64, ("batch", TOTAL))
        domains = {IDS: vocabulary, MASK: Domain("padding"), **{c.name: Domain("state") for c in caches}}
        return Signature((Input(IDS, torch.int64, ("batch", SEQUENCE)), mask, *caches), domains)
    batch: int | str = 1 if takes_one_text(model) else "batch"
    inputs = {IDS: (vocabulary, (batch, SEQUENCE)), MASK: (Domain("mask"), (batch, SEQUENCE))}
    if pools_at_end(model):
        inputs[IDS] = Domain("token", vocabulary.high, end=int(config.eos_token_id)), (batch, SEQUENCE)
    inputs |= _more_text(model, config, vocabulary, batch)
    kept = {name: found for name, found in inputs.items() if name in (IDS, MASK) or name in _parameters(model)}
    kept = {name: found for name, found in kept.items() if name not in leave_out}
    return Signature(
        tuple(Input(name, torch.int64, shape) for name, (_, shape) in kept.items()),
        {name: domain for name, (domain, _) in kept.items()},
    )


def _more_text(model: Any, config: Any, vocabulary: Domain, batch: int | str) -> dict[str, tuple[Domain, Any]]:
    """Inputs that some models of text take beside tokens and mask, if their config says that they are of use."""
    types, places = (_whole(config, name) for name in ("type_vocab_size", "max_2d_position_embeddings"))
    found: dict[str, tuple[Domain, Any]] = {}
    if types > 1:
        found[TYPES] = Domain("type", types), (batch, SEQUENCE)
    if places:
        found["bbox"] = Domain("box", places), (batch, SEQUENCE, 4)
    if model.config.is_encoder_decoder and not makes_decoder_ids(model):
        found["decoder_input_ids"] = vocabulary, (batch, "decoder_sequence")
    return found


def _parameters(model: Any) -> Mapping[str, Any]:
    return inspect.signature(model.forward).parameters


def _whole(config: Any, name: str) -> int:
    value = getattr(config, name, 0)
    return value if isinstance(value, int) else 0


def _image(model: Any, images: Path | None) -> Signature:
    """Pixels of the size that the config or the preprocessor fixes, else of any."""
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", None) or _prepared_size(images)
    height, width = (size, size) if isinstance(size, int) else size or ("height", "width")
    shape = ("batch", int(getattr(config, "num_channels", 3)), height, width)
    return Signature((Input("pixel_values", torch.float32, shape),), {"pixel_values": Domain("number")})


def _prepared_size(images: Path | None) -> tuple[int, int] | None:
    """Height and width that a preprocessor brings every image to; None where it keeps proportions, or there is none."""
    path = images / "preprocessor_config.json" if images else None
    if path is None or not path.is_file():
        return None
    try:
        size = json.loads(read_inside(path, path.parent)).get("size")
    except (OSError, ValueError, AttributeError) as error:
        what = "preprocessor_config.json is not a JSON object"
        raise MoecError("M204", what, str(path), "download the file again, or remove it") from error
    fixed = isinstance(size, dict) and all(isinstance(size.get(k), int) and size[k] > 0 for k in ("height", "width"))
    return (size["height"], size["width"]) if fixed else None


def named_call(forward: Callable[..., Any]) -> Callable[..., dict[str, Tensor]]:
    """A model's forward, without cache, that returns its tensors by name: no losses, caches or router logits."""
    fixed = {"use_cache": False} if "use_cache" in inspect.signature(forward).parameters else {}

    def call(**inputs: Tensor) -> dict[str, Tensor]:
        return results(forward(**inputs, **fixed))

    return call


def call_of(model: Any, signature: Signature, captured: bool = False) -> Callable[..., dict[str, Tensor]]:
    """The model's forward as a function of the signature's inputs by name; `captured`: see `cached_call`."""
    caches = cache_inputs(signature.inputs)
    return cached_call(model.forward, caches, captured) if caches else named_call(model.forward)


def results(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a `ModelOutput` that are results."""
    return {k: v for k, v in output.items() if isinstance(v, Tensor) and not any(word in k for word in _NOT_RESULTS)}


def expose(model: Any, signature: Signature) -> None:
    """Replace the forward of a captured copy by one with exactly the named inputs, so that torch.export sees those and
    no others."""
    forward, pooled = call_of(model, signature, captured=True), pools_at_end(model)
    for module in model.modules():  # some forwards take use_cache only from the config
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = bool(cache_inputs(signature.inputs))
    names = [inspect.Parameter(i.identifier, inspect.Parameter.POSITIONAL_OR_KEYWORD) for i in signature.inputs]
    original = {i.identifier: i.name for i in signature.inputs}

    def exposed(*args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        given = dict(zip(original, args, strict=False)) | kwargs
        with PlainViews(), masks_by_broadcast(), PoolAtEnd() if pooled else nullcontext():
            return forward(**{original[k]: v for k, v in given.items()})

    exposed.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
    model.forward = exposed
