"""From what the user named to a Source: a module, a Hugging Face folder or id, `file.py:callable`, or a `.pt2`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from moec.errors import MoecError
from moec.frontend.export import Dynamic
from moec.frontend.module_source import ExportedSource, ModuleSource, from_file
from moec.frontend.source import Source


def open_source(
    model: str | Path | nn.Module | Source,
    *,
    inputs: Mapping[str, Tensor] | Sequence[str] | None = None,
    dynamic: Dynamic | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    cache: bool = True,
) -> Source:
    """Open a model without loading its weights.

    Args:
        model: a module, a source, or a text: a Hugging Face folder or hub id, `path/to/file.py:callable`, or
            `model.pt2`.
        inputs: sample tensors by name for a module, or `name=dims:dtype` texts for `file.py:callable`.
        dynamic: names of dynamic dimensions, for a module.
        trust_remote_code, allow_pickle: run code that came with the model; refused by default.
        cache: give a Hugging Face model that generates text a cache of keys and values as inputs and outputs, so that
            one graph serves the prompt and every token after it.

    Raises:
        MoecError: M204, M205, M206 or M209, when there is no such model or moec must not or cannot read it.
    """
    if isinstance(model, Source):
        return model
    if isinstance(model, nn.Module):
        return _open_module(model, inputs, dynamic, cache)
    text = str(model)
    specs = [str(i) for i in inputs] if inputs is not None and not isinstance(inputs, Mapping) else []
    if ".py:" in text:
        return from_file(text, specs)
    if text.endswith(".pt2"):
        return ExportedSource(Path(text))
    from moec.huggingface.source import open_source as open_huggingface

    return open_huggingface(text, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle, cache=cache)


def _open_module(
    model: nn.Module, inputs: Mapping[str, Tensor] | Sequence[str] | None, dynamic: Dynamic | None, cache: bool
) -> Source:
    if inputs is None and hasattr(model, "config") and hasattr(model, "base_model_prefix"):
        from moec.huggingface.source import HuggingFaceSource

        return HuggingFaceSource.from_model(model, cache)
    if not isinstance(inputs, Mapping):
        raise MoecError(
            "M201", f"{type(model).__name__} needs sample inputs", "inputs", "pass inputs={'name': tensor, …}"
        )
    return ModuleSource(model, inputs, dynamic, text=type(model).__name__)
