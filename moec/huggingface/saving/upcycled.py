"""An upcycled program, read layer by layer, and what the files of the architecture that holds it are made of."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from moec.dialect import Routing
from moec.errors import MoecError
from moec.huggingface.saving.containers import Container, Upcycled, UpcycledLayer
from moec.program.dialect_call import RouteCall
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import META, TRAINED, Program
from moec.recognition.router_region import route_behind
from moec.weights import lazy
from moec.weights.lazy import Weight

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.mlp\.experts\.w_in$")
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
_ATTENTION = ("sliding_window", "use_sliding_window", "attention_bias", "head_dim")


def read_upcycled(program: Program, config: Any, dtype: torch.dtype | None = None) -> Upcycled:
    """Find the upcycled layers of a program. Raises M206 where it holds something else than the upcycle pass leaves."""
    nodes = moe_nodes(program)
    found = dict(_read_layer(program, node) for node in nodes)
    rules = {rule for _, rule in found.values()}
    shapes = {(b.w_in.shape, b.w_out.shape, b.w_in.dtype) for b, _ in found.values()}
    if not found or len(found) != len(nodes) or len(rules) > 1 or len(shapes) > 1:
        raise _refuse(
            program,
            "it holds no upcycled layers, or layers of several shapes or rules",
            "run the upcycle pass once, and save before other passes",
        )
    first, rule = next(iter(found.values()))
    return Upcycled(
        blocks={layer: b for layer, (b, _) in sorted(found.items())},
        layers=config.num_hidden_layers,
        routing=rule,
        experts=first.w_out.shape[0],
        intermediate=first.w_out.shape[2],
        copies=all(step.contract == "exact" and step.name not in (TRAINED, "merge") for step in program.history),
        dtype=dtype or first.w_in.dtype,
        tied=rule.groups == 1 or all(_is_tied(block.router, rule.groups) for block, _ in found.values()),
    )


def _is_tied(router: Weight, groups: int) -> bool:
    """Whether the experts of each group have one and the same router row; reads the router."""
    rows = router.load().view(groups, -1, router.shape[1])
    return bool((rows == rows[:, :1]).all())


def _refuse(program: Program, what: str, fix: str) -> MoecError:
    return MoecError("M206", f"cannot save the program as a checkpoint: {what}", program.source, fix)


def _read_layer(program: Program, node: fx.Node) -> tuple[int, tuple[UpcycledLayer, Routing]]:
    call = MoeCall(node)
    if call.b_in is not None or call.b_out is not None:
        raise _refuse(
            program, f"{node.name} has biases, which no architecture's experts have", "compile it without saving"
        )
    layer = _LAYER.search(str(getattr(call.w_in, "target", "")))
    router, rule = _fused_router(program, call) if call.fused else _router_before(program, call)
    first, last = program.weight_of(call.w_in), program.weight_of(call.w_out)
    if layer is None or router is None or rule is None or first is None or last is None:
        raise _refuse(
            program, f"{node.name} is not what the upcycle pass leaves in `layers.N.mlp`", "save before other passes"
        )
    return int(layer[1]), (UpcycledLayer(router, first, last), rule)


def _fused_router(program: Program, call: MoeCall) -> tuple[Weight | None, Routing | None]:
    """The router that a `moec::moe` holds, if it is one of an upcycle, which has no biases."""
    plain = call.router_bias is None and call.selection_bias is None
    return (program.weight_of(call.router), call.routing) if plain else (None, None)


def _router_before(program: Program, call: MoeCall) -> tuple[Weight | None, Routing | None]:
    """The router that stands before a `moec::experts`."""
    route = route_behind(call.ids, call.weights)
    logits = RouteCall(route).logits if route is not None else None
    if not isinstance(logits, fx.Node) or logits.target != torch.ops.aten.linear.default or route is None:
        return None, None
    return program.weight_of(logits.args[1]), RouteCall(route).routing


# ---------------------------------------------------------------------- the checkpoint
def target_config(config: Any, container: Container, model: Upcycled) -> Any:
    """The config of the architecture that holds the result; entries of the dense model carry over by name.

    Raises:
        MoecError: M206 for an entry that it has no place for, and for a model that is no causal language model.
    """
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


def plan_upcycled(
    program: Program, target: Any, container: Container, model: Upcycled, beside: Mapping[str, Weight] | None = None
) -> dict[str, Weight]:
    """Name in the files -> lazy weight, for every weight that the target architecture has.

    Args:
        beside: weights that are neither an expert's nor the program's own, by name.
    """
    from transformers import AutoModelForCausalLM

    with torch.device(META), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GLM-4's shared experts of width 0 have nothing to initialize
        state = AutoModelForCausalLM.from_config(target, dtype=model.dtype).state_dict()  # type: ignore[no-untyped-call]
    stored: dict[str, Weight] = {}
    for name, value in state.items():
        layer = re.match(r"model\.layers\.(\d+)\.mlp\.(.+)", name)
        block = model.blocks.get(int(layer[1])) if layer else None
        if beside and name in beside:
            made = {name: beside[name]}
        elif layer and block:
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
    path: str, part: str, block: UpcycledLayer, container: Container, model: Upcycled, shape: tuple[int, ...]
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
