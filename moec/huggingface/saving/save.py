"""A program as a checkpoint folder: upcycled or carved, so that transformers loads it and it can be trained further,
or quantized, for a server."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from moec.errors import MoecError
from moec.huggingface.reading import skeleton
from moec.huggingface.saving.carved import CODE, is_carved, plan_carved, read_carved
from moec.huggingface.saving.carved_stock import plan_stock
from moec.huggingface.saving.compressed_tensors import in_packed_form
from moec.huggingface.saving.containers import choose
from moec.huggingface.saving.folder import publish, write_checkpoint
from moec.huggingface.saving.plain_weights import is_quantized, refuse_floats, with_plain_weights
from moec.huggingface.saving.pruned import is_pruned, pruned_config, refuse_by_call
from moec.huggingface.saving.same_architecture import check_tied, plan_same
from moec.huggingface.saving.top_k import has_fewer, top_k_config, with_scales_in_weights
from moec.huggingface.saving.upcycled import plan_upcycled, read_upcycled, target_config
from moec.program.program import TRAINED, Program
from moec.program.trainable import TrainableProgram
from moec.progress import Progress
from moec.weights.lazy import Weight


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
    program = model.program if isinstance(model, TrainableProgram) else model
    source = program.original.source if source is None else source
    beside = _config(source, program.source)[1]
    target, stored, code = plan_hf(program, source, dtype)
    write = partial(write_checkpoint, config=target, stored=stored, max_shard_bytes=max_shard_bytes, beside=beside)
    publish(Path(folder), partial(write, code=code, progress=progress))
    return str(target.model_type)


def plan_hf(
    program: Program, source: Any, dtype: torch.dtype | None = None
) -> tuple[Any, dict[str, Weight], dict[str, str]]:
    """What `save_hf` writes: the config, the tensors by their names in the files, and the texts of Python files. Reads
    no weight; raises M206 as `save_hf` does."""
    config = _config(source, program.source)[0]
    refuse_floats(program)
    refuse_by_call(program)
    packed, pruned, fewer = is_quantized(program), is_pruned(program), has_fewer(program)
    program = with_plain_weights(program) if packed else program
    program = with_scales_in_weights(program, config) if fewer else program
    config = pruned_config(program, config) if pruned else config
    steps = {step.name for step in program.history}
    copies = steps & {"upcycle", "merge"}
    code: dict[str, str] = {}
    config = top_k_config(program, config) if fewer and not copies else config
    if is_carved(program):
        target, stored, code = _plan_carved(program, source, config, dtype)
    elif pruned or ((packed or fewer or TRAINED in steps) and not copies):
        target, stored = _plan_own(program, source, config, dtype)
    else:
        target, stored = _plan_upcycled(program, config, dtype)
        if packed:
            check_tied(program, target)
    if packed:
        target, stored = in_packed_form(target, stored, program.source)
    return target, stored, code


def _plan_upcycled(program: Program, config: Any, dtype: torch.dtype | None) -> tuple[Any, dict[str, Weight]]:
    upcycled = read_upcycled(program, config, dtype)
    container = choose(config, upcycled)
    if isinstance(container, str):
        raise MoecError(
            "M206",
            f"the upcycled model has no place in transformers: {container}",
            program.source,
            "compile it without saving, or change the pass",
        )
    target = target_config(config, container, upcycled)
    return target, plan_upcycled(program, target, container, upcycled)


def _plan_carved(
    program: Program, source: Any, config: Any, dtype: torch.dtype | None
) -> tuple[Any, dict[str, Weight], dict[str, str]]:
    """The same for a carved program, and the code that lies beside its weights."""
    forms = read_carved(program)
    stock = plan_stock(program, forms, config, dtype)
    if not isinstance(stock, str):
        return *stock, {}
    target, stored, text = plan_carved(program, forms, _class_of(source, config), config, dtype)
    return target, stored, {CODE: text}


def _class_of(source: Any, config: Any) -> Any:
    """The class of the model that a program was captured from."""
    import transformers

    origin = getattr(source, "origin", None)
    return type(origin.template) if origin is not None else getattr(transformers, config.architectures[0])


def _plan_own(program: Program, source: Any, config: Any, dtype: torch.dtype | None) -> tuple[Any, dict[str, Weight]]:
    """The config and the weights of a program that kept the architecture of its source."""
    model_class = _class_of(source, config)
    floats = [w.dtype for w in program.weights.values() if w.dtype.is_floating_point]
    model = skeleton.build(model_class, config, dtype or floats[0])
    stored = plan_same(program, model)
    model.config.dtype = dtype or floats[0]
    model.config.architectures = [model_class.__name__]
    return model.config, stored


def _config(source: Any, captured_from: str) -> tuple[Any, Path | None]:
    """The dense model's config, and its folder if it has one."""
    origin = getattr(source, "origin", None)
    if origin is not None:
        return origin.template.config, getattr(origin, "path", None)
    if hasattr(source, "to_dict"):
        return source, None
    if isinstance(source, str | Path) and (Path(source) / "config.json").exists():
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False), Path(source)
    folder = "pass source=the model's folder"
    if source is None:
        raise MoecError("M206", "the program does not know the model that it is of", captured_from, folder)
    what = "only a model of the transformers library can be saved as a checkpoint for it"
    fix = folder if isinstance(source, str | Path) else "compile it without saving"
    raise MoecError("M206", what, str(getattr(source, "text", source)), fix)
