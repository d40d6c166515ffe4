"""Capture a transformers model, or take the capture that an earlier compile kept."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor

from moec.files import kept
from moec.files.regular import file_hash
from moec.frontend.export import capture
from moec.frontend.imported_code import code_of
from moec.frontend.kept_capture import capture_key, keep_capture, recall_capture
from moec.frontend.plain_sizes import NotPlainError
from moec.huggingface.operators.overflow import overflow_without_branch
from moec.huggingface.origin import Origin
from moec.huggingface.reading.folder import ModelFolder
from moec.program.program import Program
from moec.weights.lazy import Weight

Dynamic = Mapping[str, Sequence[str | int | None]]


def captured(
    origin: Origin,
    model: Any,
    weights: Mapping[str, Weight],
    sample: Mapping[str, Tensor],
    dynamic: Dynamic,
    text: str,
    kinds: list[type],
    *how: Any,
) -> tuple[Program, str]:
    """The program of a model that is ready to be captured, and the key of the capture that was kept, empty where it was
    made now. Of a folder's model it is kept; one in memory may have been changed in ways that nobody sees.

    Args:
        origin: where the model comes from. text: how it was named.
        kinds: what `watched` noted; the class that a kept capture returned is put there.
        how: settings of the capture that are seen nowhere else.
    """
    key = ""
    if isinstance(origin, ModelFolder) and kept.folder() is not None:  # else nothing is kept
        with suppress(NotPlainError):  # a class whose code nobody can read
            key = _key(origin, model, weights, sample, dynamic, *how)
    found = recall_capture(key, text, weights, model) if key else None
    kind = _kind(found.note) if found else None
    if found and kind:
        kinds.append(kind)
        return found.program, key
    with overflow_without_branch(model):
        program = capture(model, sample, dynamic, weights=weights, source=text)
    program.original = replace(program.original, form=None)  # its source says it, see `original_of`
    if key and kinds:
        keep_capture(key, program, weights, model, f"{kinds[-1].__module__}:{kinds[-1].__qualname__}")
    return program, ""


def _key(
    origin: ModelFolder,
    model: Any,
    weights: Mapping[str, Weight],
    sample: Mapping[str, Tensor],
    dynamic: Dynamic,
    *how: Any,
) -> str:
    import transformers

    kind, config = f"{type(model).__module__}.{type(model).__qualname__}", _anywhere(model.config.to_dict())
    code = {name: file_hash(origin.path / name) for name in origin.code}
    imported = code_of(base.__module__ for base in type(model).__mro__)
    text = json.dumps(config, sort_keys=True, default=repr)
    return capture_key(model, weights, sample, dynamic, transformers.__version__, kind, text, code, imported, *how)


def _anywhere(config: Any) -> Any:
    """A config without the place where it lies."""
    if isinstance(config, dict):
        return {str(name): _anywhere(value) for name, value in config.items() if name != "_name_or_path"}
    return [_anywhere(value) for value in config] if isinstance(config, list | tuple) else config


def _kind(note: str) -> type | None:
    """The class of a model's outputs by its name; None where the model's code has none. Nothing is imported."""
    from transformers.utils.generic import ModelOutput

    module, _, name = note.partition(":")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) and issubclass(found, ModelOutput) else None
