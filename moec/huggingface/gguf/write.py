"""A program as one GGUF file, which llama.cpp and what is built on it load.

Weights are written as the program has them: packed ones as Q4_0 or Q8_0 with the program's own codes, floats in one
form that is asked for. Nothing is quantized here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moec.errors import MoecError
from moec.files.exchange import move
from moec.files.refused import refused
from moec.files.workplace import workplace
from moec.huggingface.gguf.architecture import ARCHITECTURES, ROPE_FACTORS, add_settings, rope_factors, why_not
from moec.huggingface.gguf.blocks import FLOATS, as_bytes, form_of
from moec.huggingface.gguf.blocks import why_not as why_not_packed
from moec.huggingface.gguf.names import to_gguf
from moec.huggingface.gguf.vocabulary import add_vocabulary, copy_vocabulary
from moec.huggingface.saving.half_precision import Rounding
from moec.huggingface.saving.plain_weights import refuse_floats
from moec.huggingface.saving.planned import Planned, plan
from moec.layouts.gguf_package import require_package
from moec.program.program import Program
from moec.program.trainable import TrainableProgram
from moec.weights.lazy import Weight, from_tensor

_INSTEAD = "compile it with --save-hf in the place of --save-gguf"
_ROUTER = ".ffn_gate_inp.weight"  # llama.cpp reads routers in float32


def save_gguf(
    model: Program | TrainableProgram, file: str | Path, source: Any = None, floats: str = "f16"
) -> tuple[str, ...]:
    """Write a Llama, Qwen3, Mixtral or Qwen3-MoE, as it was captured or changed by passes, as a GGUF file, one block of
    a weight in memory at a time.

    Symmetric codes of 4 and 8 bits in groups of 32 (or 64, or 128) are written as they are, in Q4_0 and Q8_0; their
    scales are rounded to the 16 bits that these forms have, which changes nothing where the program computes in
    float16. The file is written beside its place and renamed when it is whole.

    Args:
        model: a program that was captured from a Hugging Face model, or the module that
            `program.module(trainable=True)` made.
        file: to write; must not exist.
        source: see `moec.huggingface.saving.save.save_hf`; the tokenizer is read from its folder.
        floats: of matrices that are not packed: `f16`, `bf16` or `f32`. Vectors and routers are float32 always.

    Returns:
        What was written, a line each: forms, vocabulary, what rounding did.

    Raises:
        MoecError: M206 for what a GGUF file cannot say, with the reason; M203 where a number is too large for 16 bits;
            M210 when the file cannot be written; M301 without the package `gguf`.
    """
    require_package()
    planned = plan(model, source, untouched=True)
    refuse_floats(planned.stored, "a GGUF file", planned.where)
    reason = why_not(planned.config)
    if reason:
        raise _refuse(planned, reason, _INSTEAD)
    out, rounding = Path(file), Rounding()
    tensors = _tensors(planned, floats.upper(), rounding)
    if out.exists() or out.is_symlink():
        raise MoecError("M210", "there is something of that name already", str(out), "remove it or name another")
    try:
        with workplace(out) as place:
            vocabulary = _write(place / out.name, planned, tensors, _file_of(model, source))
            _require_finite(rounding, planned, floats)
            move(place / out.name, out)
    except OSError as error:
        better = refused(error, out.parent, out)
        if better is None:
            raise
        raise better from error
    return (_said_of(tensors), vocabulary, *_said_of_rounding(rounding, floats))


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file: its shape, its form, and its bytes as uint8 `[…, bytes of a row]`."""

    shape: tuple[int, ...]
    form: str
    data: Weight


def _refuse(planned: Planned, what: str, fix: str) -> MoecError:
    return MoecError("M206", f"a GGUF file cannot hold the program: {what}", planned.where, fix)


def _tensors(planned: Planned, plain: str, rounding: Rounding) -> dict[str, _Tensor]:
    """The file's tensors by name. Raises M206 for one that it has no name or no form for."""
    named = to_gguf(planned.stored, planned.config, ARCHITECTURES[planned.config.model_type])
    found = {}
    for name, weight in named.items():
        if isinstance(weight, str):
            raise _refuse(planned, f"llama.cpp has no tensor for {weight!r}", _INSTEAD)
        reason = why_not_packed(weight)
        if reason:
            fix = "write quantize(…, bits=4 or 8, group=32, symmetric=true)"
            raise _refuse(planned, f"{name} has {reason}", fix)
        if weight.coded is None and any(part.coded is not None for part in weight.expression()):
            what = f"parts of {name}, which is one tensor there, are packed in several ways"
            raise _refuse(planned, what, "quantize the experts of a layer alike")
        form = "F32" if name.endswith(_ROUTER) else form_of(weight, plain)
        found[name] = _Tensor(weight.shape, form, as_bytes(name, weight, form, rounding))
    factors = rope_factors(planned.config)
    if factors is not None:
        made = from_tensor(factors, ROPE_FACTORS)
        found[ROPE_FACTORS] = _Tensor(made.shape, "F32", as_bytes(ROPE_FACTORS, made, "F32", rounding))
    return found


def _file_of(model: Program | TrainableProgram, source: Any) -> Path | None:
    """The GGUF file that a program was captured from, if it was one."""
    program = model.program if isinstance(model, TrainableProgram) else model
    source = program.original.source if source is None else source
    return getattr(getattr(source, "origin", None), "file", None)


def _write(path: Path, planned: Planned, tensors: Mapping[str, _Tensor], file: Path | None) -> str:
    """Write the file; returns a line on its vocabulary, which is that of `file` where there is one."""
    import gguf

    writer = gguf.GGUFWriter(path, ARCHITECTURES[planned.config.model_type])
    try:
        add_settings(writer, planned.config)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(_file_type(tensors))
        size = planned.config.vocab_size
        vocabulary = copy_vocabulary(writer, file) if file else add_vocabulary(writer, planned.beside, size)
        for name, tensor in tensors.items():
            shape, kind = tensor.data.shape, gguf.GGMLQuantizationType[tensor.form]
            writer.add_tensor_info(name, shape, _Streamed.dtype, tensor.data.size_bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors.values():
            writer.write_tensor_data(_Streamed(tensor.data))  # type: ignore[arg-type]  # of an array it takes these two
    finally:
        writer.close()
    return vocabulary


class _Streamed:
    """Bytes as the package asks numpy for them, one block in memory at a time."""

    dtype = np.dtype("uint8")

    def __init__(self, data: Weight) -> None:
        self._data, self.nbytes = data, data.size_bytes

    def tofile(self, file: Any) -> None:
        """Write all bytes into an open file."""
        for block in self._data.blocks():
            file.write(block.contiguous().flatten().numpy().data)


def _file_type(tensors: Mapping[str, _Tensor]) -> Any:
    """The word for the form that most bytes have."""
    import gguf

    words = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q4_0": "MOSTLY_Q4_0", "Q8_0": "MOSTLY_Q8_0"}
    most = max(words, key=lambda form: sum(t.data.size_bytes for t in tensors.values() if t.form == form))
    return gguf.LlamaFileType[words[most]]


def _require_finite(rounding: Rounding, planned: Planned, floats: str) -> None:
    if rounding.lost:
        name = min(rounding.lost)
        what = f"{name} holds numbers that are larger than 16 bits hold (65504)"
        packed = f"{name}: scales of Q4_0 and Q8_0"
        where = name if floats != "f32" else packed
        raise MoecError("M203", what, where, "write --gguf-floats f32, and leave this matrix unquantized")


def _said_of(tensors: Mapping[str, _Tensor]) -> str:
    counts = {form: sum(t.form == form for t in tensors.values()) for form in (*FLOATS, "Q8_0", "Q4_0")}
    said = ", ".join(f"{count} of {form}" for form, count in counts.items() if count)
    return f"{len(tensors)} tensors: {said}"


def _said_of_rounding(rounding: Rounding, floats: str) -> list[str]:
    said = rounding.said()
    if rounding.floats:
        said.append(f"{len(rounding.floats)} matrices are rounded to {floats} (not with --gguf-floats f32)")
    return said
