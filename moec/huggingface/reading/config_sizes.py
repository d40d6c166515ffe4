"""A config is looked at before anything is built from it: its entries' types, its counts, and the size of the model
that it describes beside what the weight files hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from moec.errors import MoecError
from moec.execution.memory import total_bytes
from moec.huggingface.reading.conversion import convert
from moec.huggingface.reading.skeleton import registering
from moec.weights.lazy import Weight

_COUNTS = (  # names of counts, and the most that a model may have: each is a loop when it is built
    (re.compile(r"(num_|n_)?(\w+_)?(layers?|blocks|stages)(_\w+)?|depths?"), 4096),
    (re.compile(r"(\w+_)?experts(_\w+)?|(\w+_)?heads(_\w+)?|\w*n_head|\w*groups?"), 65536),
)
_SIZES = ("size", "vocab", "dim")  # widths, whatever they are the widths of: `vocab_size_per_layer_input` (Gemma 4)
_MORE, _TIMES = 10_000, 64  # parameters that a model may have beyond those stored, and beside each


class _Config(msgspec.Struct):
    """What moec itself reads of a config.json, each entry with its type."""

    model_type: str | None = None
    architectures: list[str] | None = None
    auto_map: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None


def check_config(raw: Mapping[str, Any], path: Path) -> None:
    """Raise M204 for an entry of a wrong type, and for a count that no model has."""
    try:
        msgspec.convert(raw, _Config)
    except msgspec.ValidationError as error:
        raise MoecError("M204", f"config.json has a wrong entry: {error}", str(path), "correct that entry") from error
    for name, value in _numbers(raw):
        counts = not any(word in name for word in _SIZES)
        most = next((most for pattern, most in _COUNTS if counts and pattern.fullmatch(name)), 2**53)
        if abs(value) > most:
            what = f"config.json says {name} = {value:.6g}, and {most} is the most that moec builds"
            raise MoecError("M204", what, str(path), "correct that entry")


def _numbers(raw: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every whole number of a config by its name, those of its sub-configs and lists too."""
    for name, value in raw.items():
        if isinstance(value, Mapping):
            yield from _numbers({str(key): entry for key, entry in value.items()})
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, int) and not isinstance(entry, bool):
                yield name, entry


def check_size(model_class: Any, config: Any, weights: Mapping[str, Weight], path: Path) -> None:
    """Raise M204 when the model that a config describes is far larger than what the files hold, before memory is taken
    for it: it is built on the meta device, and its parameters are counted as they come."""
    from transformers.initialization import no_init_weights

    limit = _MORE + _TIMES * len(weights)
    with no_init_weights(), built_from(path), torch.device("meta"), registering(_AtMost(limit)):
        model: nn.Module = model_class._from_config(deepcopy(config))
    _require_most(model, weights, path)
    made_bytes = sum(buffer.nbytes for buffer in model.buffers())
    if made_bytes > total_bytes() // 4:
        what = f"the model would compute tables of {made_bytes / 2**30:,.0f} GiB when it is made"
        raise MoecError("M204", what, str(path), "correct config.json, or use a machine with more memory")


def _require_most(model: nn.Module, weights: Mapping[str, Weight], path: Path) -> None:
    """Raise M205 when the files lack more of a model's tensors than they hold: such a model is not even traced."""
    state, found = model.state_dict(), convert(model, weights)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    lacking = [name for name in state if name not in found and name not in tied]
    if len(lacking) > len(weights):
        what = f"config.json describes a model whose {lacking[0]!r} and {len(lacking) - 1} more tensors no file holds"
        raise MoecError("M205", what, str(path), "correct config.json, or download the whole checkpoint")


@contextmanager
def built_from(path: Path) -> Iterator[None]:
    """What transformers raises while it builds a model from a config, as M204: its classes check little themselves."""
    try:
        yield
    except MoecError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        what = f"transformers cannot make this model: {type(error).__name__}: {reason}"
        raise MoecError("M204", what, str(path), "correct config.json, or download it again") from error


class _AtMost:
    """Lets so many parameters through."""

    def __init__(self, limit: int) -> None:
        self._limit, self._count = limit, 0

    def __call__(self, value: nn.Parameter | None) -> nn.Parameter | None:
        self._count += 1
        if self._count > self._limit:
            raise ValueError(f"it has more than {self._limit} parameters, far more than the files hold")
        return value
