"""A program as a checkpoint folder: upcycled or carved, so that transformers loads it and it can be trained further,
or quantized, for a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moec.errors import MoecError
from moec.huggingface.formats.modelopt import FILE
from moec.huggingface.saving.compressed_tensors import in_packed_form
from moec.huggingface.saving.folder import publish, write_checkpoint
from moec.huggingface.saving.gptq import in_gptq_form, require_kept
from moec.huggingface.saving.half_precision import Rounding
from moec.huggingface.saving.modelopt import in_modelopt_form
from moec.huggingface.saving.planned import Planned, plan
from moec.program.program import Program
from moec.program.trainable import TrainableProgram
from moec.progress import Progress
from moec.registry import did_you_mean

FORMATS = ("compressed-tensors", "gptq", "modelopt")
SHARD_BYTES = 5 * 10**9


def save_hf(
    model: Program | TrainableProgram,
    folder: str | Path,
    source: Any = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    hf_format: str = FORMATS[0],
) -> str:
    """Write an upcycled, merged, carved, pruned, trained or quantized causal language model, or one with fewer experts
    a token, as `config.json` and safetensors, streaming: one block of a weight in memory at a time.

    The checkpoint's weights are the program's. Those that are packed are written in the compressed-tensors form, in
    GPTQ's or in ModelOpt's, which servers load, with the program's own codes; an embedding is written as the numbers
    that it stands for. The folder is written beside `folder` and renamed when it is whole.

    Args:
        model: a program that was captured from a Hugging Face model, then upcycled, merged, pruned or trained, and
            quantized or not, fused or not; or the module that `program.module(trainable=True)` made, as it is now.
        folder: to write; must not exist.
        source: the model that it was captured from, where the program does not know: its folder, its config, or the
            `HuggingFaceSource`. Tokenizer files are copied from a folder.
        dtype: to store in; None means the program's. Another one rounds scales too.
        max_shard_bytes: of one weight file.
        progress: is told how many bytes of the weights are written.
        hf_format: of packed weights: `compressed-tensors`; `gptq`, whose scales have 16 bits; or `modelopt`, of small
            floats alone.

    Returns:
        The architecture that was chosen: `mixtral`, `qwen3_moe` or `glm4_moe` for an upcycled or merged model; for a
            carved one `qwen2_moe`, or `carved_` and the source's own, whose code then lies in the folder; else the
            source's own.

    Raises:
        MoecError: M206 when no architecture of transformers, or the packed form, holds the model exactly, with the
            reasons; M203 when 16 bits do not hold its scales; M201 for an unknown form; M210 when the folder cannot be
            written.
    """
    planned = plan_hf(model, source, dtype, hf_format)
    write_planned(planned, folder, max_shard_bytes, progress)
    return str(planned.config.model_type)


def write_planned(
    planned: Planned, folder: str | Path, max_shard_bytes: int = SHARD_BYTES, progress: Progress | None = None
) -> Rounding:
    """Write what `plan_hf` says, and say what became of its numbers. Raises as `save_hf` does."""

    def write(place: Path) -> None:
        config, stored, beside, texts = planned.config, planned.stored, planned.beside, planned.texts
        write_checkpoint(place, config, stored, max_shard_bytes, beside, texts, progress)
        require_kept(planned.rounding)

    publish(Path(folder), write)
    return planned.rounding


def plan_hf(
    model: Program | TrainableProgram,
    source: Any = None,
    dtype: torch.dtype | None = None,
    hf_format: str = FORMATS[0],
) -> Planned:
    """What `save_hf` writes, packed weights in their packed form. Reads no weight but routers that choose groups.
    Raises M201 and M206 as `save_hf` does."""
    if hf_format not in FORMATS:
        what, fix = f"there is no form {hf_format!r} of packed weights", did_you_mean(hf_format, FORMATS)
        raise MoecError("M201", what, "hf_format", fix)
    planned = plan(model, source, dtype)
    if hf_format == "gptq":
        config, stored = in_gptq_form(planned.config, planned.stored, planned.where, planned.rounding)
    elif hf_format == "modelopt":
        config, stored, text = in_modelopt_form(planned.config, planned.stored, planned.where)
        planned = replace(planned, texts={**planned.texts, FILE: text})
    elif planned.packed:
        config, stored = in_packed_form(planned.config, planned.stored, planned.where)
    else:
        return planned
    return replace(planned, config=config, stored=stored)
