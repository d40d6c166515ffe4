"""A program as a checkpoint folder: upcycled or carved, so that transformers loads it and it can be trained further,
or quantized, for a server."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moec.huggingface.saving.compressed_tensors import in_packed_form
from moec.huggingface.saving.folder import publish, write_checkpoint
from moec.huggingface.saving.planned import Planned, plan
from moec.program.program import Program
from moec.program.trainable import TrainableProgram
from moec.progress import Progress


def save_hf(
    model: Program | TrainableProgram,
    folder: str | Path,
    source: Any = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
    progress: Progress | None = None,
) -> str:
    """Write an upcycled, merged, carved, pruned, trained or quantized causal language model, or one with fewer experts
    a token, as `config.json` and safetensors, streaming: one block of a weight in memory at a time.

    The checkpoint's weights are the program's. Those that are packed are written in the compressed-tensors form, which
    vLLM loads, with the program's own integers; an embedding is written as the numbers that it stands for. The folder
    is written beside `folder` and renamed when it is whole.

    Args:
        model: a program that was captured from a Hugging Face model, then upcycled, merged, pruned or trained, and
            quantized or not, fused or not; or the module that `program.module(trainable=True)` made, as it is now.
        folder: to write; must not exist.
        source: the model that it was captured from, where the program does not know: its folder, its config, or the
            `HuggingFaceSource`. Tokenizer files are copied from a folder.
        dtype: to store in; None means the program's. Another one rounds scales too.
        max_shard_bytes: of one weight file.
        progress: is told how many bytes of the weights are written.

    Returns:
        The architecture that was chosen: `mixtral`, `qwen3_moe` or `glm4_moe` for an upcycled or merged model; for a
            carved one `qwen2_moe`, or `carved_` and the source's own, whose code then lies in the folder; else the
            source's own.

    Raises:
        MoecError: M206 when no architecture of transformers, or the packed form, holds the model exactly, with the
            reasons; M210 when the folder cannot be written.
    """
    planned = plan_hf(model, source, dtype)
    write = partial(write_checkpoint, config=planned.config, stored=planned.stored, max_shard_bytes=max_shard_bytes)
    publish(Path(folder), partial(write, beside=planned.beside, code=planned.code, progress=progress))
    return str(planned.config.model_type)


def plan_hf(model: Program | TrainableProgram, source: Any = None, dtype: torch.dtype | None = None) -> Planned:
    """What `save_hf` writes, packed weights in their packed form. Reads no weight; raises M206 as `save_hf` does."""
    planned = plan(model, source, dtype)
    if not planned.packed:
        return planned
    config, stored = in_packed_form(planned.config, planned.stored, planned.where)
    return replace(planned, config=config, stored=stored)
