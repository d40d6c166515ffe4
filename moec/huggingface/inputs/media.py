"""Inputs of images and sounds: which tensors of a model's forward they are, which sizes may differ, and what they hold.

Two runs of the checkpoint's own processor say it: a dimension that has one size in both is fixed, dimensions that
differ alike are one. Where that leaves a question, the model is asked by running it on the meta device.
"""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from moec.frontend.domain import Domain
from moec.huggingface.inputs.processor import Prepared
from moec.program.decoder_signature import IDS, MASK, SEQUENCE, TYPES
from moec.program.program import META, Input
from moec.program.vision_language import IMAGES

BATCH = "batch"
FRAME_S = 0.02  # seconds of a raw sound that a speech model makes one vector of, about
PATCH = 8  # pixels of an image's height or width that stand for one token of a text where sizes are chosen
_OF_TEXT = (IDS, MASK, TYPES, "bbox", "decoder_input_ids")

Found = dict[str, tuple[Domain, torch.dtype, tuple[int | str, ...]]]


def media_inputs(model: Any, made: Prepared, leave_out: Container[str] = (), method: str = "forward") -> Found:
    """The inputs of a model's forward that a processor makes, in the forward's order, by name.

    Args:
        model: a `PreTrainedModel`.
        made: by the processor.
        leave_out: what the user does not want.
        method: another one than `forward` that the engine stands for.
    """
    taken = list(inspect.signature(getattr(model, method)).parameters)
    of_text = _OF_TEXT if IDS in taken else ()
    names = [n for n in taken if n in made.runs[0] and n not in leave_out and n not in of_text]
    dims = _named(names, made)
    return {n: (_domain(n, model, made), made.runs[0][n].dtype, dims[n]) for n in names}


def _named(names: Sequence[str], made: Prepared) -> dict[str, tuple[int | str, ...]]:
    """The shape of each input; a dimension that differs between runs has a name, alike ones have the same."""
    known: dict[tuple[int, ...], str] = {}
    found: dict[str, tuple[int | str, ...]] = {}
    for name in names:
        shapes = [run[name].shape for run in made.runs]
        sizes = list(zip(*shapes, strict=True))
        found[name] = tuple(
            alike[0] if len(set(alike)) == 1 else known.setdefault(alike, _call(name, axis, len(sizes), alike, made))
            for axis, alike in enumerate(sizes)
        )
    return found


def _call(name: str, axis: int, rank: int, alike: tuple[int, ...], made: Prepared) -> str:
    """What a dimension is called that has these sizes."""
    if axis == 0:
        return BATCH if alike == made.counts else f"{name}_{axis}"
    if "pixel" in name and rank >= 3 and axis >= rank - 2:
        return ("height", "width")[axis - rank]
    if axis == 1 and rank <= 3:
        return "samples" if rank == 2 and name == "input_values" else "frames"
    return f"{name}_{axis}"


def _domain(name: str, model: Any, made: Prepared) -> Domain:
    value = made.runs[0][name]
    if value.is_floating_point():
        return Domain("number")
    if "mask" in name:
        return Domain("mask", step=_step(name, value.dim(), made))
    return Domain("number", max(2, int(value.max()) + 1))


def _step(name: str, rank: int, made: Prepared) -> int:
    """Elements by which one row of a mask is shorter than the next."""
    if "pixel" in name:
        return PATCH
    return max(1, int(made.rate * FRAME_S)) if rank == 2 and _is_raw(made) else 1


def _is_raw(made: Prepared) -> bool:
    return any(name == "input_values" and value.dim() == 2 for name, value in made.runs[0].items())


def deciding(signature_inputs: Sequence[Input], made: Prepared | None) -> dict[str, Tensor]:
    """Inputs of whole numbers that are neither tokens nor masks, such as the grid of an image, as a processor made
    them: sizes inside a model may hang on them."""
    runs_made = made.runs[0] if made else {}
    ours = {i.name: runs_made[i.name] for i in signature_inputs if i.name in runs_made}
    return {n: v for n, v in ours.items() if not v.is_floating_point() and "mask" not in n and n not in _OF_TEXT}


def scales(found: Found, made: Prepared | None) -> dict[str, int]:
    """Of each dimension that has many more elements than a text has tokens: how many stand for one token."""
    rate = made.rate if made else 0
    known = {"height": PATCH, "width": PATCH, "samples": max(1, int(rate * FRAME_S))}
    return {d: known[d] for _, _, shape in found.values() for d in shape if isinstance(d, str) and d in known}


def settled(model: Any, found: Found, text: Found, fixed_size: tuple[int, int] | None) -> Found:
    """The inputs with the height and width that the config says, where the model takes no others beside its `text`."""
    dynamic = any(d in ("height", "width") for _, _, shape in found.values() for d in shape)
    if fixed_size is None or not dynamic or runs(model, {**text, **found}):
        return found
    sizes: dict[int | str, int] = dict(zip(("height", "width"), fixed_size, strict=True))
    return {n: (domain, dtype, tuple(sizes.get(d, d) for d in shape)) for n, (domain, dtype, shape) in found.items()}


def apart(model: Any, text: Found, media: Found) -> Found:
    """The inputs of images or sounds with a number of items of their own, where a model takes as many texts as one
    likes beside them: where it compares each with each."""
    own = {n: (d, t, tuple(IMAGES if size == BATCH else size for size in shape)) for n, (d, t, shape) in media.items()}
    return own if text and media and runs(model, {**text, **own}, strict=True) else media


def runs(model: Any, found: Found, strict: bool = False) -> bool:
    """Whether a model takes inputs of odd sizes, seen on the meta device. One that asks for values cannot be seen to
    refuse: then it counts as one that runs, but where `strict`."""
    sizes = {BATCH: 2, IMAGES: 3, SEQUENCE: 11, "height": 71, "width": 103}
    inputs = {name: value for name, value in _empty(found, sizes) if name != MASK or IDS not in found}  # read as values
    asked = _Asked()
    try:
        with torch.no_grad(), asked:
            _on_meta(model)(**inputs)
    except NotImplementedError:  # a shape that hangs on values
        return not strict
    except Exception:  # whatever a model raises for sizes that it does not take
        return not strict and asked.for_values
    return True


class _Asked(TorchFunctionMode):
    """Notes that a model asked for values on the meta device, which has none, or mixed its tensors with others."""

    _VALUES = ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__", "__array__")

    def __init__(self) -> None:
        super().__init__()
        self.for_values = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_meta = [x.device == META for x in given]
        reads = any(on_meta) and getattr(func, "__name__", "") in self._VALUES
        mixed = any(on_meta) and any(x.device != META and x.dim() for x in given)
        try:
            return func(*args, **(kwargs or {}))
        except Exception:
            self.for_values |= reads or mixed
            raise


def _empty(found: Found, sizes: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    for name, (_, dtype, shape) in found.items():
        size = [sizes.get(d, 64) if isinstance(d, str) else d for d in shape]
        yield name, torch.empty(size, dtype=dtype, device=META)


def _on_meta(model: Any) -> Any:
    """The model, or a copy of it on the meta device that shares nothing."""
    if all(p.device == META for p in model.parameters()) and all(b.device == META for b in model.buffers()):
        return model
    import copy

    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(t): _meta(t) for t in tensors})


def _meta(value: Tensor) -> Tensor:
    empty = torch.empty_like(value, device=META)
    return torch.nn.Parameter(empty, requires_grad=False) if isinstance(value, torch.nn.Parameter) else empty
