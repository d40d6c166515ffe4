"""From what the user named to a Source: the registered sources are asked in their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from moec import registry
from moec.errors import MoecError
from moec.frontend.account import FLAG
from moec.frontend.from_exported import Dynamic
from moec.frontend.source import Opening, Source
from moec.program.decoder_signature import PAST
from moec.registry import nearest


def open_source(
    model: str | Path | nn.Module | Source | Any,
    *,
    inputs: Mapping[str, Tensor] | Sequence[str] | None = None,
    dynamic: Dynamic | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    cache: bool = True,
    leave_out: Sequence[str] = (),
    part: str = "",
) -> Source:
    """Open a model without loading its weights.

    Args:
        model: a module, a source, or a text: a Hugging Face folder or hub id, `path/to/file.py:callable`, or
            `model.pt2`; or whatever a source of the group `moec.sources` opens.
        inputs: sample tensors by name for a module, or `name=dims:dtype` texts for `file.py:callable`.
        dynamic: names of dynamic dimensions, for a module.
        trust_remote_code, allow_pickle: run code that came with the model; refused by default.
        cache: give a Hugging Face model that generates text a cache of keys and values as inputs and outputs, so that
            one graph serves the prompt and every token after it.
        leave_out: names of inputs, tensors and files of a Hugging Face model that the engine is to be without.
        part: of a model in parts, such as an encoder and a decoder, the one to open.

    Raises:
        MoecError: M204, M205, M206 or M209, when there is no such model or moec must not or cannot read it; M201 when
            something is to be left out of one that has nothing of the kind, or inputs, dimensions or no cache are asked
            of one that has its own.
    """
    opening = Opening(inputs, dynamic, trust_remote_code, allow_pickle, cache, leave_out, part)
    if isinstance(model, Source):
        _check_left_out(leave_out, model.text, "pass leave_out where the source is opened")
        return _with_its_own(model, opening)
    kind = source_kind(model, opening)
    if kind is not None:
        if not kind.leaves_out:
            text = str(model) if isinstance(model, str | Path) else type(model).__name__
            _check_left_out(leave_out, text, f"compile it without {FLAG}, or change the model itself")
        source = kind.open(model, opening)
        return source if kind.takes_inputs(model) else _with_its_own(source, opening)
    raise MoecError(
        "M204",
        f"a {type(model).__name__} is no model that moec opens",
        "model",
        "give a folder, file.py:callable, a .pt2 file, an nn.Module, or install a package with a source for it",
    )


def _with_its_own(source: Source, opening: Opening) -> Source:
    """A source whose inputs are its own. Raises M201 when others are asked for, with the nearest of its own."""
    given = opening.inputs or opening.dynamic
    if given:
        own, asked = [i.name for i in source.inputs], "inputs" if opening.inputs else "dynamic"
        near = [name for text in given for name in nearest(str(text).partition("=")[0], own)[:1]]
        shown = ", ".join(dict.fromkeys(near)) or ", ".join(name for name in own if not name.startswith("past_key"))
        what = f"{source.text} has inputs of its own, and others were given"
        raise MoecError("M201", what, asked, f"leave {asked} out: {shown} is there already")
    if not opening.cache and any(PAST in i.shape for i in source.inputs):
        what = f"the cache of {source.text} is among its inputs, and cannot be left out any more"
        raise MoecError("M201", what, "cache", "capture the model anew without a cache")
    return source


def _check_left_out(names: Sequence[str], model: str, fix: str) -> None:
    """Raise M201 when names are given that nobody would look for."""
    if names:
        what = f"{FLAG} names parts of a Hugging Face model, and nothing of this one can be left out"
        raise MoecError("M201", what, model, fix)


def source_kind(model: Any, opening: Opening) -> type[Source] | None:
    """The first registered source that opens this model; None where none does. Opens nothing."""
    kinds: Iterator[type[Source]] = (registry.find("sources", name) for name in registry.names("sources"))
    return next((kind for kind in kinds if kind.opens(model, opening)), None)


def described_kind(model: str | Path) -> type[Source]:
    """The registered source that a model is opened with, for what it says from the config alone. Raises M201 where no
    source opens it."""
    kind = source_kind(str(model), Opening())
    if kind is None:
        raise without_config(model)
    return kind


def without_config(model: str | Path) -> MoecError:
    """M201 for a model that keeps no config, of which something was asked that only a config says."""
    fix = "give a config.json, or use `moec inspect`, which captures the model"
    return MoecError("M201", "this model has no config.json, from which it could be told", str(model), fix)
