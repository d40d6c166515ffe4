"""Which inputs a Hugging Face model takes, of which sizes, and which values they may have."""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.frontend.account import FLAG
from moec.frontend.domain import Domain
from moec.huggingface.inputs.arguments import makes_decoder_ids
from moec.huggingface.inputs.heads import pools_at_end, takes_one_text
from moec.huggingface.inputs.image_size import image_inputs, image_size
from moec.huggingface.inputs.media import Found, apart, media_inputs, scales, settled
from moec.huggingface.inputs.processor import Prepared
from moec.huggingface.states.encoder_decoder import has_parts, part_inputs, whole_inputs
from moec.huggingface.states.vision_language_call import FEATURES
from moec.program.decoder_signature import IDS, MASK, PAST, SEQUENCE, TOTAL, TYPES
from moec.program.program import Input
from moec.program.signature import PER, per

# odd, 2 or more, and unlike a model's own sizes: torch.export specialises sizes that look like constants
CAPTURE_SIZES = {
    "batch": 3, "sequence": 11, "decoder_sequence": 7, "past_sequence": 5, "height": 71, "width": 103,
    "encoder_sequence": 17, "past_encoder_sequence": 7, "image_tokens": 9,
}  # fmt: skip
_GROUPS = 2  # of tokens that a row of a state stands for: so many at least are in the cache, and new


@dataclass(frozen=True)
class Signature:
    """Inputs in order, with the values that each may take.

    Attributes:
        part: of an encoder-decoder, or of a model of text and images, where it is not whole.
        scale: see `moec.frontend.source.Source`.
        sizes: of dynamic dimensions, as a processor made them: a capture takes them where no others are known.
        fixed: tensors of the forward that every call has, by name; they are in the graph.
        method: of the model, that the engine stands for.
        image: of a model of text and images, and of its parts: what its encoder takes of one image.
    """

    inputs: tuple[Input, ...]
    domains: dict[str, Domain]
    scale: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    part: str = ""
    method: str = "forward"
    image: Mapping[str, Tensor] | None = None

    def dynamic(self) -> dict[str, tuple[str | None, ...]]:
        """The dynamic dimensions in the form that `capture` takes."""
        return {i.name: tuple(d if isinstance(d, str) else None for d in i.shape) for i in self.inputs}


def capture_sizes(inputs: Sequence[Input]) -> dict[str, int]:
    """`CAPTURE_SIZES`; longer ones, where a state has a row for every few tokens: torch.export specialises a row, too,
    that there is one of."""
    most = max((per(d) for i in inputs for d in i.shape if isinstance(d, str) and PER in d), default=0)
    return {name: size + _GROUPS * most * (name in (SEQUENCE, PAST)) for name, size in CAPTURE_SIZES.items()}


def signature_of(
    model: Any,
    caches: Sequence[Input] = (),
    leave_out: Container[str] = (),
    images: Path | None = None,
    made: Prepared | None = None,
) -> Signature:
    """The signature of a `PreTrainedModel`, from its main input, its forward's parameters, what its processor makes and
    the cache inputs that it is to have.

    Args:
        model: its weights may be missing.
        caches: what `cache_signature` found.
        leave_out: names of inputs that the user does not want.
        images: folder with a `preprocessor_config.json`, where there is one.
        made: what the folder's processor makes, where one was run.

    Raises M206 for other modalities without a processor, M201 where a main input is to be left out.
    """
    main: str = model.main_input_name
    if only_features(model, leave_out):
        return features_signature(model, leave_out, images, made)
    needed = (IDS, MASK) if caches else (main,)
    unwilling = next((name for name in needed if name in leave_out), None)
    if unwilling is not None:
        fix = "leave out other inputs only"
        raise MoecError("M201", f"{type(model).__name__} does not run without {unwilling}", FLAG, fix)
    if caches:
        return _text(model, caches, leave_out)
    text = _plain_text(model, leave_out)
    if main != IDS and has_parts(model):
        return _of_parts(whole_inputs(model))
    media = _media(model, text, leave_out, images, made)
    if main not in (IDS, *media):
        raise _unknown(model, main)
    media = apart(model, text, media)
    first = (text, media) if main == IDS else (media, text)
    return _signature({**first[0], **first[1]}, media, made)


def features_signature(
    model: Any, leave_out: Container[str] = (), images: Path | None = None, made: Prepared | None = None
) -> Signature:
    """The signature of what makes the features of images, see `signature_of`."""
    found = _media(model, {}, leave_out, images, made, FEATURES)
    return _signature(found, found, made, FEATURES)


def only_features(model: Any, leave_out: Container[str]) -> bool:
    """Whether a model of text and images is asked for without its text: then the engine makes what the images are to
    the decoder."""
    takes = hasattr(model, FEATURES) and model.main_input_name == IDS and IDS in leave_out
    return takes and "pixel_values" not in leave_out


def _signature(found: Found, media: Found, made: Prepared | None, method: str = "forward") -> Signature:
    return Signature(
        tuple(Input(name, dtype, shape) for name, (_, dtype, shape) in found.items()),
        {name: domain for name, (domain, _, _) in found.items()},
        scales(media, made),
        _sizes(media, made) if made else {},
        method=method,
    )


def part_signature(model: Any, part: str) -> Signature:
    """The signature of the `encoder` or the `decoder` of a model on the meta device, see `part_inputs`."""
    return _of_parts(part_inputs(model, part), part)


def _of_parts(inputs: Mapping[Input, Domain], part: str = "") -> Signature:
    return Signature(tuple(inputs), {spec.name: domain for spec, domain in inputs.items()}, part=part)


def _unknown(model: Any, main: str) -> MoecError:
    what = f"{type(model).__name__} takes {main!r}, and nothing in the folder says of what shape"
    fix = f"put the checkpoint's preprocessor_config.json beside it, or name the shape: --input {main}=DIMS:float32"
    return MoecError("M206", what, "main_input_name", fix)


def _media(
    model: Any,
    text: Found,
    leave_out: Container[str],
    images: Path | None,
    made: Prepared | None,
    method: str = "forward",
) -> Found:
    """Inputs of images and sounds, of a method that takes some: what the processor makes, else pixels as the config
    has them."""
    names = inspect.signature(getattr(model, method)).parameters
    if made is not None:
        size = image_size(model, images)
        found = media_inputs(model, made, leave_out, method)
        found = settled(model, found, text, (size, size) if isinstance(size, int) else size)
        if found:
            return found
    seen = "pixel_values" in names and "pixel_values" not in leave_out
    beside_text = method == "forward" and model.main_input_name == IDS and model.can_generate()
    return image_inputs(model, images) if seen and not beside_text else {}


def _sizes(media: Found, made: Prepared) -> dict[str, int]:
    pairs = ((d, n) for name, (_, _, shape) in media.items() if name in made.runs[0]
             for d, n in zip(shape, made.runs[0][name].shape, strict=True))  # fmt: skip
    return {d: n for d, n in pairs if isinstance(d, str)}


def _text(model: Any, caches: Sequence[Input], leave_out: Container[str] = ()) -> Signature:
    """Of a decoder with a cache."""
    vocabulary = Domain("token", int(model.config.get_text_config().vocab_size))
    mask = Input(MASK, torch.int64, ("batch", TOTAL))
    domains = {IDS: vocabulary, MASK: Domain("padding"), **{c.name: Domain("state") for c in caches}}
    return Signature((Input(IDS, torch.int64, ("batch", SEQUENCE)), mask, *caches), domains)


def _plain_text(model: Any, leave_out: Container[str] = ()) -> Found:
    """Inputs of text; none where the forward takes no token ids."""
    if IDS not in _parameters(model):
        return {}
    config = model.config.get_text_config()
    vocabulary = Domain("token", int(config.vocab_size))
    batch: int | str = 1 if takes_one_text(model) else "batch"
    inputs: dict[str, tuple[Domain, Any]] = {
        IDS: (vocabulary, (batch, SEQUENCE)), MASK: (Domain("mask"), (batch, SEQUENCE))
    }  # fmt: skip
    if pools_at_end(model):
        inputs[IDS] = Domain("token", vocabulary.high, end=int(config.eos_token_id)), (batch, SEQUENCE)
    inputs |= _more_text(model, config, vocabulary, batch)
    kept = {name: found for name, found in inputs.items() if name in (IDS, MASK) or name in _parameters(model)}
    return {name: (domain, torch.int64, shape) for name, (domain, shape) in kept.items() if name not in leave_out}


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
