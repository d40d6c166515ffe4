"""From the names and layouts of a checkpoint to those of the model, as transformers does it, but lazily.

transformers 5 describes how each architecture's checkpoints become its parameters: renamings, and converters made of
operations (stack a list of experts, concatenate gate and up, transpose …). The same description is followed here; only
the operations are replaced by expressions of lazy weights, so that a stack of experts is read expert by expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.weights.lazy import Weight, cast, concat, rearranged, rows, rowwise, stack, transpose, whole

Pieces = dict[str, list[Weight] | Weight]


def convert(model: Any, stored: Mapping[str, Weight]) -> dict[str, Weight]:
    """The model's parameters and saved buffers, by name, in the dtypes that the model has; weights of no use are left
    out.

    Args:
        model: a `PreTrainedModel`, its parameters on the meta device.
        stored: the checkpoint's weights by the names in its files.

    Raises:
        MoecError: M205 when a weight has another shape than the model, M206 when a conversion cannot be followed.
    """
    state: dict[str, Tensor] = model.state_dict()
    result: dict[str, Weight] = {}
    for key, (converter, pieces) in collect(model, stored, state).items():
        made = {key: _only(pieces)} if converter is None else _run(converter, key, pieces, model)
        result.update({name: weight for name, weight in made.items() if name in state})
    for name, weight in result.items():
        if weight.shape != tuple(state[name].shape):
            raise MoecError(
                "M205",
                f"the checkpoint's {name!r} has shape {list(weight.shape)}, the model needs {list(state[name].shape)}",
                weight.origin,
                "use the config.json that belongs to these weights",
            )
    return result


def collect(model: Any, stored: Mapping[str, Weight], state: dict[str, Tensor]) -> dict[str, tuple[Any, Pieces]]:
    """Model name -> (converter or None, its sources by pattern), in the order of transformers'
    `convert_and_load_state_dict_in_model`."""
    groups: dict[str, tuple[Any, Pieces]] = {}
    for original, key, pattern, converter in place(model, stored, state):
        if key not in state:
            continue
        _, pieces = groups.setdefault(key, (deepcopy(converter), {}))
        sources = pieces.setdefault(pattern or original, [])
        assert isinstance(sources, list)
        sources.append(cast(stored[original], state[key].dtype))
    return groups


def place(model: Any, stored: Iterable[str], state: dict[str, Tensor]) -> Iterator[tuple[str, str, str | None, Any]]:
    """Each stored name, the model's name that it goes to (not one of `state` where it goes nowhere), and the pattern
    and the converter by which it does, if any."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    for original in sorted(stored, key=dot_natural_key):
        key, pattern = rename_source_key(original, renamings, converters, model.base_model_prefix, state)
        if key not in state and original in state:
            key, pattern = rename_source_key(original, [], [], model.base_model_prefix, state)
        yield original, key, pattern, by_pattern[pattern] if pattern else None


def _only(pieces: Pieces) -> Weight:
    value = next(iter(pieces.values()))
    return value[0] if isinstance(value, list) else value


def _run(converter: Any, key: str, pieces: Pieces, model: Any) -> dict[str, Weight]:
    """A converter's operations one after the other, and the names of what they leave."""
    facts = {"source_patterns": converter.source_patterns, "target_patterns": converter.target_patterns,
             "full_layer_name": key, "model": model, "config": model.config, "missing_keys": None}  # fmt: skip
    for operation in converter.operations:
        try:
            pieces = _apply(operation, pieces, facts)
        except (ValueError, RuntimeError, AttributeError) as error:
            raise MoecError(
                "M206", f"the conversion {operation!r} of transformers fails on this checkpoint: {error}", key,
                "check that config.json belongs to these weights",
            ) from error  # fmt: skip
    full = key.replace("*.", "0.")
    known = next((k for k in pieces if k in full), None)
    before, _, after = full.partition(known) if known else ("", "", "")
    return {before + name + after: _only({name: value}) for name, value in pieces.items()}


def _apply(operation: Any, pieces: Pieces, facts: dict[str, Any]) -> Pieces:
    """One operation, lazily: it is run on meta tensors for the names and shapes, and its content becomes an
    expression."""
    probe = operation.convert({k: _meta(v) for k, v in pieces.items()}, **facts)
    expression = _EXPRESSIONS.get(type(operation).__name__)
    made = expression(operation, pieces, probe, facts) if expression else None
    return made if made is not None else _opaque(operation, pieces, probe, facts)


def _meta(value: list[Weight] | Weight) -> list[Tensor] | Tensor:
    return [w.meta() for w in value] if isinstance(value, list) else value.meta()


def _flat(pieces: Pieces, order: list[str] | None = None) -> list[Weight]:
    values = [pieces[k] for k in order if k in pieces] if order else list(pieces.values())
    return [w for v in values for w in (v if isinstance(v, list) else [v])]


def _opaque(operation: Any, pieces: Pieces, probe: Mapping[str, Any], facts: dict[str, Any]) -> Pieces:
    """Any other operation: reading a part of the result runs all of it."""
    counts = {k: len(v) if isinstance(v, list) else 0 for k, v in pieces.items()}

    def make(name: str) -> Callable[..., Tensor]:
        def function(*tensors: Tensor) -> Tensor:
            left = iter(tensors)
            given = {k: [next(left) for _ in range(n)] if n else next(left) for k, n in counts.items()}
            value = operation.convert(given, **facts)[name]
            result: Tensor = value[0] if isinstance(value, list) else value
            return result.contiguous()

        return function

    return {name: whole(f"{type(operation).__name__}[{name}]", make(name), *_flat(pieces)) for name in probe}


def _merge(operation: Any, pieces: Pieces, probe: Mapping[str, Tensor], _facts: dict[str, Any]) -> Pieces | None:
    if operation.dim != 0:
        return None
    return {name: stack(v) if isinstance(v, list) else v for name, v in zip(probe, pieces.values(), strict=True)}


def _concatenate(operation: Any, pieces: Pieces, probe: Mapping[str, Tensor], facts: dict[str, Any]) -> Pieces:
    parts = _flat(pieces, facts["source_patterns"])
    return {next(iter(probe)): concat(parts, operation.dim % len(parts[0].shape))}


def _transpose(operation: Any, pieces: Pieces, probe: Mapping[str, Tensor], facts: dict[str, Any]) -> Pieces:
    weight = _only(pieces)
    stays = operation.check_dims and weight.shape == tuple(facts["model"].get_parameter(facts["full_layer_name"]).shape)
    if stays:
        return {next(iter(probe)): weight}
    turned = transpose(weight, operation.dim0, operation.dim1)
    experts = len(weight.shape) == 3 and {operation.dim0 % 3, operation.dim1 % 3} == {1, 2}
    return {next(iter(probe)): replace(turned, relaid=experts)}


def _cut(operation: Any, pieces: Pieces, probe: Mapping[str, Tensor], _facts: dict[str, Any]) -> Pieces:
    """Chunk and Split: consecutive parts, whose sizes the probe tells."""
    weight, dim, at = _only(pieces), operation.dim % len(_only(pieces).shape), 0
    parts: Pieces = {}
    for name, part in probe.items():
        parts[name] = rows(weight, at, at + part.shape[0]) if dim == 0 else _narrow(weight, dim, at, part.shape[dim])
        at += part.shape[dim]
    return parts


def _narrow(weight: Weight, dim: int, start: int, size: int) -> Weight:
    make = rowwise if dim == len(weight.shape) - 1 else rearranged
    return make(
        f"narrow[{dim},{start}:{start + size}]", lambda t: torch.narrow(t, dim, start, size).contiguous(), weight
    )


# the operations whose result can be read in part; a name that transformers drops is only never met
_EXPRESSIONS: dict[str, Callable[[Any, Pieces, Mapping[str, Tensor], dict[str, Any]], Pieces | None]] = {
    "MergeModulelist": _merge,
    "Concatenate": _concatenate,
    "Transpose": _transpose,
    "Chunk": _cut,
    "Split": _cut,
}
