"""The three parts of a transformers model of text and images as functions of flat tensors by name.

transformers' models mark the places of images (`get_placeholder_mask`), scatter what the images are over them, and call
their text decoder. The untouched parts are cut out of the model's own forward at these calls. What is captured is
written anew where the forward asks for values, and is held to the untouched part.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from moec.huggingface.states.cache import cached_call
from moec.huggingface.states.deepstack import adding, handed, rows_of, with_rows
from moec.program.decoder_signature import EMBEDS, IDS, LOGITS, MASK, cache_inputs
from moec.program.encoder_decoder import DECODER
from moec.program.signature import Input
from moec.program.vision_language import DEEPSTACK, DEEPSTACK_EMBEDS, EMBEDDING, IMAGE_FEATURES, VISION

FEATURES = "get_image_features"  # of transformers' models of text and images: what an image is to the decoder
PLACES, KINDS = "get_placeholder_mask", "mm_token_type_ids"
_ROWS = "image_features"  # an argument of `PLACES`
Call = Callable[..., dict[str, Tensor]]


class _Reached(Exception):
    """A forward has come to where it is cut."""

    def __init__(self, found: Any) -> None:
        super().__init__("a model's forward was cut here")
        self.found = found


def owner_of(model: nn.Module) -> Any:
    """The module whose forward puts images in the place of tokens, the innermost that has both methods; None without
    one."""
    return next((m for m in reversed([*model.modules()]) if hasattr(m, PLACES) and hasattr(m, FEATURES)), None)


def seeing_call(
    model: Any, part: str, inputs: Sequence[Input], image: Mapping[str, Tensor], fixed: Mapping[str, Tensor],
    captured: bool = False,
) -> Call:  # fmt: skip
    """A model of text and images, or a part of it, as a function of the signature's inputs by name.

    Args:
        model: a `PreTrainedModel`. part: of `VISION_PARTS`; empty for the whole.
        inputs: the signature's. image: what the encoder takes of one image.
        fixed: tensors that every call of the encoder has.
        captured: in the form that one graph has for every size.
    """
    if part == VISION:
        return vision_call(model, fixed)
    if part == EMBEDDING:
        return embedding_call(model) if captured else untouched_embedding_call(model, image)
    if part == DECODER:
        return _decoder_call(model, inputs, captured)
    return whole_call(model, fixed)


def whole_call(model: Any, fixed: Mapping[str, Tensor] | None = None) -> Call:
    """The whole model: logits `[batch, sequence, vocabulary]` of tokens and images."""
    forward = model.forward

    def call(**inputs: Tensor) -> dict[str, Tensor]:
        known = {**(fixed or {}), **_kinds(model, inputs[IDS])} if set(inputs) - {IDS, MASK} else {}
        return {LOGITS: forward(**inputs, **known, use_cache=False).logits}

    return call


def _kinds(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Which tokens are of images, for a model that asks for it: as its processor says it."""
    asked = KINDS in inspect.signature(model.forward).parameters
    return {KINDS: (ids == image_token(model)).int()} if asked else {}


def _decoder_call(model: Any, inputs: Sequence[Input], captured: bool) -> Call:
    """The decoder: logits and the longer cache of vectors in the place of tokens."""
    call, decoder = cached_call(model.forward, cache_inputs(inputs), captured, model), model.get_decoder()
    levels = [i.name for i in inputs if i.name.startswith(DEEPSTACK_EMBEDS)]

    def with_levels(**given: Tensor) -> dict[str, Tensor]:
        with adding(decoder, [given.pop(name) for name in levels], captured):
            return call(**given)

    return with_levels if levels else call


def vision_call(model: Any, fixed: Mapping[str, Tensor] | None = None) -> Call:
    """The vision encoder: what the model puts in the place of image tokens, `image_features` `[image_tokens, hidden]`.

    It is the forward with an image up to where it marks the places; `fixed`: tensors that every call has. Rows that
    the decoder adds to its layers are beside them.
    """
    owner = owner_of(model)
    # a capture that is cut inside of a module's call is left with that module open
    forward, features, asked = owner.forward, getattr(owner, FEATURES), inspect.signature(getattr(owner, PLACES))

    def mark(*args: Any, **given: Any) -> None:  # by place or by name
        raise _Reached(asked.bind(*args, **given).arguments.get(_ROWS))

    def call(**inputs: Tensor) -> dict[str, Tensor]:
        made = list[Any]()

        def noted(*args: Any, **kwargs: Any) -> Any:
            made.append(features(*args, **kwargs))
            return made[0]

        pixels = next(value for value in inputs.values() if value.is_floating_point())
        ids = torch.zeros((1, 1), dtype=torch.int64, device=pixels.device)
        with _instead(owner, PLACES, mark), _instead(owner, FEATURES, noted), _Together():
            rows = _cut(forward, input_ids=ids, **inputs, **(fixed or {}))
        return {IMAGE_FEATURES: rows.reshape(-1, rows.shape[-1]), **rows_of(made[0])}

    return call


def embedding_call(model: Any) -> Call:
    """The embedding, for a capture: `inputs_embeds` `[batch, sequence, hidden]` of tokens and rows of images."""
    table, token = model.get_input_embeddings(), image_token(model)

    def call(*, input_ids: Tensor, image_features: Tensor, **more: Tensor) -> dict[str, Tensor]:
        vectors, places = table(input_ids), input_ids == token
        levels = {
            name.replace(DEEPSTACK, DEEPSTACK_EMBEDS): merged(torch.zeros_like(vectors), places, rows)
            for name, rows in more.items()
        }
        return {EMBEDS: merged(vectors, places, image_features), **levels}

    return call


def merged(vectors: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """`vectors` `[batch, sequence, hidden]` with `rows` `[image_tokens, hidden]`, in order, where `places`
    `[batch, sequence]` are. A place for which there is no row is left as it is: a model may write that token itself."""
    flat = places.reshape(-1)
    numbers = (flat.cumsum(0) * flat).view(places.shape)  # 0 is no row, and stands before the first
    numbers = torch.where(numbers <= rows.shape[0], numbers, 0)
    held = torch.cat([torch.zeros_like(vectors[0, :1]), rows.to(vectors.dtype)])
    return torch.where((numbers > 0)[..., None], held[numbers], vectors)


def untouched_embedding_call(model: Any, image: Mapping[str, Tensor]) -> Call:
    """The same by the model's own forward up to its decoder, which is given other rows than it makes of `image`."""
    forward, owner, decoder = model.forward, owner_of(model), model.get_decoder()
    places, features, made = getattr(owner, PLACES), getattr(owner, FEATURES), list[Any]()
    asked = inspect.signature(places)

    def once(*_: Any, **__: Any) -> Any:
        if not made:
            made.append(features(**image, return_dict=True))
        return made[0]

    def reach(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        raise _Reached(given)

    def call(*, input_ids: Tensor, image_features: Tensor, **more: Tensor) -> dict[str, Tensor]:
        def mark(*args: Any, **given: Any) -> Any:
            bound = asked.bind(*args, **given)
            bound.arguments[_ROWS] = image_features
            return places(*bound.args, **bound.kwargs)

        def other(*_: Any, **__: Any) -> Any:
            return with_rows(once(), more)

        # pixels alone: what says how they lie decides positions, which are not the embedding's business
        seen = {n: v for n, v in image.items() if v.is_floating_point()} if len(image_features) else {}
        handle = decoder.register_forward_pre_hook(reach, with_kwargs=True)
        try:
            with _instead(owner, PLACES, mark), _instead(owner, FEATURES, other), _Scattered(image_features):
                given = _cut(forward, **{IDS: input_ids}, use_cache=False, **seen)
        finally:
            handle.remove()
        return {EMBEDS: given[EMBEDS], **handed(given, len(more))}

    return call


class _Together(TorchFunctionMode):
    """Within it, a list of the features of each image, of as many images as one likes, is one of all of them: what is
    made of the list puts them behind each other again."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        size = args[0].shape[0] if args and isinstance(args[0], Tensor) and args[0].dim() else 0
        if isinstance(size, torch.SymInt):
            if func is Tensor.unbind and args[1:] in ((), (0,)):
                return (args[0],)
            if func is Tensor.__len__:  # `list` asks how much room to make, and the answer would fix the size
                return size.node.hint
        return func(*args, **(kwargs or {}))


class _Scattered(TorchFunctionMode):
    """Within it, `masked_scatter` takes other rows than it is given."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self._rows = rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.masked_scatter:
            return func(args[0], args[1], self._rows)
        return func(*args, **(kwargs or {}))


def image_token(model: Any) -> int:
    """The token that stands for a part of an image; -1 where the config names none."""
    names = ("image_token_id", "image_token_index")
    found = next((getattr(model.config, n) for n in names if getattr(model.config, n, None) is not None), -1)
    return int(found)


def _cut(forward: Callable[..., Any], **given: Any) -> Any:
    """What a forward had where it was cut."""
    try:
        forward(**given)
    except _Reached as reached:
        return reached.found
    raise AssertionError("the forward was not cut")


@contextmanager
def _instead(module: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Within, a module has this function in the place of a method."""
    setattr(module, name, function)
    try:
        yield
    finally:
        delattr(module, name)
