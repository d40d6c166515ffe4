"""A program as a checkpoint folder: upcycled, so that transformers loads it and it can be trained further, or
quantized, for a server."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import fx

from moec.dialect import Routing
from moec.errors import MoecError
from moec.huggingface.reading import skeleton
from moec.huggingface.saving.containers import Block, Container, Upcycled, choose
from moec.huggingface.saving.packed import (
    check_tied,
    in_packed_form,
    is_quantized,
    plan_same,
    refuse_floats,
    with_plain_weights,
)
from moec.huggingface.saving.pruned import is_pruned, pruned_config, refuse_by_call
from moec.program.program import META, Program
from moec.weights import lazy
from moec.weights.lazy import Weight
from moec.weights.shards import write_shards

ops = torch.ops.moec
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.mlp\.experts\.w_in$")
_BESIDE = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
)
# entries that say what the model's file was, or that are checked in containers.py
_NOT_CARRIED = {
    "model_type",
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "_name_or_path",
    "pretraining_tp",
    "layer_types",
    "max_window_layers",
    "use_sliding_window",
    "sliding_window",
    "attention_bias",
    "mlp_bias",
    "auto_map",
    "head_dim",
}


def save_hf(
    program: Program,
    source: Any,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> str:
    """Write an upcycled, pruned or quantized causal language model as `config.json` and safetensors, streaming: one
    block of a weight in memory at a time.

    The checkpoint's weights are the program's. Those that are packed are written in the compressed-tensors form, which
    vLLM loads, with the program's own integers; an embedding is written as the numbers that it stands for. The folder
    is written beside `folder` and renamed when it is whole.

    Args:
        program: captured from a Hugging Face model, then upcycled or pruned, and quantized or not; not yet fused.
        source: the model it was: its folder, its config, or the `HuggingFaceSource` that was captured. Tokenizer files
            are copied from a folder.
        folder: to write; must not exist.
        dtype: to store in; None means the program's. Another one rounds scales too.
        max_shard_bytes: of one weight file.

    Returns:
        The architecture that was chosen: `mixtral`, `qwen3_moe` or `glm4_moe` for an upcycled model, else the source's
            own, which a pruned one keeps.

    Raises:
        MoecError: M206 when no architecture of transformers, or the packed form, holds the model exactly, with the
            reasons; M210 when the folder cannot be written.
    """
    config, beside = _config(source)
    refuse_floats(program)
    refuse_by_call(program)
    packed, pruned = is_quantized(program), is_pruned(program)
    program = with_plain_weights(program) if packed else program
    config = pruned_config(program, config) if pruned else config
    if pruned or (packed and not any(step.name == "upcycle" for step in program.history)):
        target, stored = _plan_own(program, source, config, dtype)
    else:
        target, stored = _plan_upcycled(program, config, dtype)
        if packed:
            check_tied(program, target)
    if packed:
        target, stored = in_packed_form(target, stored, program.source)
    _publish(Path(folder), lambda partial: _write(partial, target, stored, max_shard_bytes, beside))
    return str(target.model_type)


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
    target = _target_config(config, container, upcycled)
    return target, _plan(program, target, container, upcycled)


def _plan_own(program: Program, source: Any, config: Any, dtype: torch.dtype | None) -> tuple[Any, dict[str, Weight]]:
    """The config and the weights of a program that kept the architecture of its source."""
    import transformers

    origin = getattr(source, "origin", None)
    model_class = type(origin.template) if origin is not None else getattr(transformers, config.architectures[0])
    floats = [w.dtype for w in program.weights.values() if w.dtype.is_floating_point]
    model = skeleton.build(model_class, config, dtype or floats[0])
    stored = plan_same(program, model)
    model.config.dtype = dtype or floats[0]
    model.config.architectures = [model_class.__name__]
    return model.config, stored


def _config(source: Any) -> tuple[Any, Path | None]:
    """The dense model's config, and its folder if it has one."""
    origin = getattr(source, "origin", None)
    if origin is not None:
        return origin.template.config, getattr(origin, "path", None)
    if hasattr(source, "to_dict"):
        return source, None
    if isinstance(source, str | Path) and (Path(source) / "config.json").exists():
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(source, local_files_only=True), Path(source)
    where = str(getattr(source, "text", source))
    raise MoecError(
        "M206",
        "only a model of the transformers library can be saved as a checkpoint for it",
        where,
        "compile it without saving",
    )


# ---------------------------------------------------------------------- the program
def read_upcycled(program: Program, config: Any, dtype: torch.dtype | None = None) -> Upcycled:
    """Find the upcycled layers of a program. Raises M206 where it holds something else than the upcycle pass leaves."""
    nodes = program.nodes(ops.experts.default)
    found = dict(_read_block(program, node) for node in nodes)
    rules = {rule for _, rule in found.values()}
    shapes = {(b.w_in.shape, b.w_out.shape, b.w_in.dtype) for b, _ in found.values()}
    if not found or len(found) != len(nodes) or len(rules) > 1 or len(shapes) > 1:
        raise _refuse(
            program,
            "it holds no upcycled layers, or layers of several shapes or rules",
            "run the upcycle pass once, and save before other passes",
        )
    block, rule = next(iter(found.values()))
    return Upcycled(
        blocks={layer: b for layer, (b, _) in sorted(found.items())},
        layers=config.num_hidden_layers,
        routing=rule,
        experts=block.w_out.shape[0],
        intermediate=block.w_out.shape[2],
        copies=all(step.contract == "exact" for step in program.history),
        dtype=dtype or block.w_in.dtype,
    )


def _refuse(program: Program, what: str, fix: str) -> MoecError:
    return MoecError("M206", f"cannot save the program as a checkpoint: {what}", program.source, fix)


def _read_block(program: Program, node: fx.Node) -> tuple[int, tuple[Block, Routing]]:
    _, ids, weight, w_in, w_out, b_in, b_out = [*node.args, None, None][:7]
    if b_in is not None or b_out is not None:
        raise _refuse(
            program, f"{node.name} has biases, which no architecture's experts have", "compile it without saving"
        )
    layer = _LAYER.search(str(getattr(w_in, "target", "")))
    route = getattr(ids, "args", [None])[0]
    logits = (
        route.args[0]
        if isinstance(route, fx.Node)
        and route.target == ops.route.default
        and getattr(weight, "args", [None])[0] is route
        else None
    )
    router = (
        program.weight_of(logits.args[1])
        if isinstance(logits, fx.Node) and logits.target == torch.ops.aten.linear.default
        else None
    )
    first, last = program.weight_of(w_in), program.weight_of(w_out)
    if layer is None or router is None or first is None or last is None:
        raise _refuse(
            program, f"{node.name} is not what the upcycle pass leaves in `layers.N.mlp`", "save before other passes"
        )
    return int(layer[1]), (Block(router, first, last), Routing.of(route.kwargs))


# ---------------------------------------------------------------------- the checkpoint
def _target_config(config: Any, container: Container, model: Upcycled) -> Any:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASS_NAMES

    target_class = CONFIG_MAPPING[container.model_type]
    if not any(name.endswith("ForCausalLM") for name in config.architectures or ["ForCausalLM"]):
        raise MoecError(
            "M206",
            f"{config.architectures[0]} is no causal language model",
            config.model_type,
            "save a ...ForCausalLM model",
        )
    known, given = target_class().to_dict(), config.to_dict()
    lost = [k for k, v in given.items() if v and k not in known and k not in _NOT_CARRIED]
    if lost:
        raise MoecError(
            "M206",
            f"{container.model_type} has no place for {', '.join(lost)}",
            "config.json",
            "remove these entries if they mean nothing",
        )
    carried = {k: v for k, v in given.items() if k in known and (k not in _NOT_CARRIED or k in _ATTENTION)}
    target = target_class(**{**carried, **container.entries(config, model)})
    target.architectures = [CLASS_NAMES[container.model_type]]
    target.dtype = model.dtype
    return target


_ATTENTION = ("sliding_window", "use_sliding_window", "attention_bias", "head_dim")


def _plan(program: Program, target: Any, container: Container, model: Upcycled) -> dict[str, Weight]:
    """Name in the files -> lazy weight, for every weight that the target architecture has."""
    from transformers import AutoModelForCausalLM

    with torch.device(META), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GLM-4's shared experts of width 0 have nothing to initialize
        state = AutoModelForCausalLM.from_config(target, dtype=model.dtype).state_dict()  # type: ignore[no-untyped-call]
    stored: dict[str, Weight] = {}
    for name, value in state.items():
        layer = re.match(r"model\.layers\.(\d+)\.mlp\.(.+)", name)
        block = model.blocks.get(int(layer[1])) if layer else None
        if layer and block:
            made = _expert_weights(
                f"model.layers.{layer[1]}.{container.block}", layer[2], block, container, model, tuple(value.shape)
            )
        elif name == "lm_head.weight" and target.tie_word_embeddings:
            continue
        else:
            made = {name: _dense_weight(program, name, tuple(value.shape))}
        stored |= {key: lazy.cast(w, value.dtype) for key, w in made.items()}
    return stored


def _expert_weights(
    path: str, part: str, block: Block, container: Container, model: Upcycled, shape: tuple[int, ...]
) -> dict[str, Weight]:
    """What the files hold for one parameter of an upcycled layer: the experts one by one, as the published checkpoints
    do."""
    gate, up, down = container.expert
    i = model.intermediate
    if part == "experts.gate_up_proj":
        experts = [lazy.select(block.w_in, e) for e in range(model.experts)]
        halves = {gate: (0, i), up: (i, 2 * i)}
        return {
            f"{path}.experts.{e}.{n}.weight": lazy.rows(w, a, b)
            for e, w in enumerate(experts)
            for n, (a, b) in halves.items()
        }
    if part == "experts.down_proj":
        return {f"{path}.experts.{e}.{down}.weight": lazy.select(block.w_out, e) for e in range(model.experts)}
    if part == "gate.weight":
        return {f"{path}.{part}": block.router}
    # GLM-4's correction bias, and its shared experts of width 0
    return {f"{path}.{part}": lazy.zeros(shape, torch.float32)}


def _dense_weight(program: Program, name: str, shape: tuple[int, ...]) -> Weight:
    """A weight that upcycling left as it was, under the same name in the program or, in a wrapped model, at the end of
    one."""
    names = [n for n in program.weights if n == name or n.endswith(f".{name}")]
    if not names and name == "model.embed_tokens.weight":
        names = [n for n in program.weights if n.endswith("lm_head.weight")]  # tied, and captured under its other name
    found = program.weights[names[0]] if len(names) == 1 else None
    if found is None or found.shape != shape:
        raise _refuse(
            program,
            f"the weight {name!r} of shape {list(shape)} is not in it",
            "capture the model with moec, then upcycle, then save",
        )
    return found


# ---------------------------------------------------------------------- the folder
def _publish(folder: Path, write: Any) -> None:
    """Write beside the folder and rename; nothing is left behind after an error or an interrupt."""
    if folder.exists():
        raise MoecError("M210", "the checkpoint's folder exists already", str(folder), "remove it or name another")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise MoecError(
            "M210", f"the checkpoint's folder cannot be made: {error}", str(folder), "name a folder that can be written"
        ) from error
    try:
        write(partial)
        partial.chmod(0o755)
        partial.rename(folder)
    except OSError as error:
        raise MoecError(
            "M210",
            f"the checkpoint cannot be written: {error}",
            str(folder),
            "make room on the disk, or name another folder",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, config: Any, stored: dict[str, Weight], max_shard_bytes: int, beside: Path | None) -> None:
    config.save_pretrained(folder)
    write_shards(folder, stored, max_shard_bytes)
    for pattern in _BESIDE if beside else ():
        for file in beside.glob(pattern):  # type: ignore[union-attr]
            shutil.copyfile(file, folder / file.name)
