"""A GGUF file as a checkpoint: config, tensors under transformers' names, integers as they lie.

Floats (F32, F16, BF16) and the two forms of integers that moec can keep packed (Q4_0, Q8_0) are read; the file is
mapped, and a tensor is read when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError, reason_of
from moec.huggingface.gguf.architecture import ARCHITECTURES, ROPE_FACTORS, config_from
from moec.huggingface.gguf.blocks import BITS, FLOATS, from_blocks
from moec.huggingface.gguf.header import AGAIN, check_header
from moec.huggingface.gguf.names import from_gguf
from moec.huggingface.reading.config_sizes import built_from, check_config
from moec.layouts.gguf_package import require_package
from moec.weights.lazy import Weight, decoded

_FORMS = (*FLOATS, *BITS)


@dataclass(frozen=True)
class GgufContent:
    """What a GGUF file says.

    Attributes:
        config: entries of a config.json. built: transformers' config of them. model_class: what it is the config of.
        weights: by their names in a checkpoint of transformers.
        stored_bytes: of all tensors.
        vocabulary: the kind of its tokenizer, `none` where it has none.
    """

    config: dict[str, Any]
    built: Any
    model_class: Any
    weights: dict[str, Weight]
    stored_bytes: int
    vocabulary: str


def read_gguf(path: Path) -> GgufContent:
    """The model of a file; reads its header.

    Raises:
        MoecError: M204 for a file that is none or is cut short, M206 for an architecture, a form or a tensor that moec
            does not read, and for big-endian numbers, M301 without the package `gguf`.
    """
    require_package()
    reader = _open(path)
    with _readable(path):
        return _content(reader, path)


def _content(reader: Any, path: Path) -> GgufContent:
    """What a file says whose header is whole. Raises anything where it contradicts itself."""
    fields = _fields(reader, path)
    if int(fields.get("split.count", 0)) > 1:
        fix = "join the parts first: llama-gguf-split --merge FIRST-PART.gguf OUT.gguf"
        raise MoecError("M206", "the GGUF file is one part of a model", str(path), fix)
    _check_places(reader)
    tensors = {str(t.name): t for t in reader.tensors}
    shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in tensors.items()}
    factors = tensors.pop(ROPE_FACTORS, None)
    config = config_from(fields, shapes, None if factors is None else torch.from_numpy(factors.data.copy()))
    if isinstance(config, str):
        raise _refuse(config, path)
    config = {name: value for name, value in config.items() if value is not None}
    check_config(config, path)
    built, model_class = _built(config, path)
    lazy = {name: _weight(path, shapes[name], tensor) for name, tensor in tensors.items()}
    weights = _named(lazy, built, str(fields["general.architecture"]), path)
    stored_bytes = sum(int(t.n_bytes) for t in tensors.values())
    vocabulary = str(fields.get("tokenizer.ggml.model", "none"))
    return GgufContent(config, built, model_class, weights, stored_bytes, vocabulary)


def _open(path: Path) -> Any:
    from gguf import GGUFReader

    check_header(path)
    try:
        return GGUFReader(path)
    except OSError:
        raise
    except Exception as error:  # a broken header makes it raise anything
        reason = reason_of(error)
        raise MoecError("M204", f"it is no GGUF file, or a part of one: {reason}", str(path), AGAIN) from error


def _check_places(reader: Any) -> None:
    """Raise ValueError unless tensors lie one behind the other, as llama.cpp asks: else one is read where another
    lies."""
    place, step = int(reader.data_offset), int(reader.alignment)
    for tensor in reader.tensors:
        if int(tensor.data_offset) != place:
            raise ValueError(f"{tensor.name} begins at byte {tensor.data_offset}, and those before it end at {place}")
        place += -(-int(tensor.n_bytes) // step) * step


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What is raised where fields or shapes are of no model, as M204."""
    try:
        yield
    except MoecError:
        raise
    except KeyError as error:
        raise MoecError("M204", f"the file does not say {error.args[0]!r}", str(path), AGAIN) from error
    except (TypeError, ValueError, ArithmeticError, IndexError, RuntimeError) as error:
        reason = reason_of(error)
        raise MoecError("M204", f"its header is that of no model: {reason}", str(path), AGAIN) from error


def _fields(reader: Any, path: Path) -> dict[str, Any]:
    """The file's facts, but for long lists. Raises M206 for one where moec reads a single value."""
    short = {name: field.contents() for name, field in reader.fields.items() if len(field.data) <= 1}
    own = (f"{short.get('general.architecture')}.", "general.architecture", "split.count")
    read = tuple(f"tokenizer.ggml.{name}" for name in ("model", "bos_token_id", "eos_token_id", "padding_token_id"))
    for name in reader.fields:
        if name not in short and (name.startswith(own) or name in read):
            raise _refuse(f"{name} is a list, as of one value for each layer, and moec reads one for all", path)
    return short


def _refuse(what: str, path: Path) -> MoecError:
    fix = "compile the checkpoint of transformers that the file was made from"
    return MoecError("M206", f"the GGUF file is not read: {what}", str(path), fix)


def _weight(path: Path, shape: tuple[int, ...], tensor: Any) -> Weight:
    """A tensor of the file, lazy, with its codes where it is packed. Raises M206 for a form that moec does not read."""
    form, data = tensor.tensor_type.name, tensor.data
    if form not in _FORMS:
        what = f"{tensor.name} is in {form}; moec reads {', '.join(_FORMS)}"
        fix = "quantize the model anew in one of them: llama-quantize --pure MODEL.gguf OUT.gguf q8_0"
        raise MoecError("M206", f"the GGUF file is not read: {what}", str(path), fix)
    dtype = FLOATS.get(form)
    origin = f"{path.name}:{tensor.name}"
    if dtype is None:
        stored = Weight(tuple(data.shape), torch.uint8, origin, lambda a, b: _copied(data[a:b]), by_rows=True)
        return decoded(from_blocks(stored, form))
    raw = data.view("uint8").reshape(shape[0], -1)

    def read(start: int, stop: int) -> Tensor:
        return _copied(raw[start:stop]).view(dtype).reshape(stop - start, *shape[1:])

    return Weight(shape, dtype, origin, read, by_rows=True)


def _copied(rows: Any) -> Tensor:
    return torch.from_numpy(rows.copy())


def _built(config: dict[str, Any], path: Path) -> tuple[Any, Any]:
    """The config and the class of the model; the entries get the name of the class."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    kind = getattr(transformers, NAMES[config["model_type"]])
    with built_from(path):
        built = kind.config_class(**config)
    built.architectures = config["architectures"] = [kind.__name__]
    return built, kind


def _named(stored: Mapping[str, Weight], built: Any, architecture: str, path: Path) -> dict[str, Weight]:
    assert ARCHITECTURES[built.model_type] == architecture
    found: dict[str, Weight] = {}
    for name, weight in from_gguf(stored, built, architecture).items():
        if isinstance(weight, str):
            raise _refuse(f"{name} has no place in a {built.model_type}", path)
        found[name] = weight
    return found
