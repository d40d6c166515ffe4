"""Tensors by their names in a GGUF file, from those in a checkpoint of transformers and back.

The names are those of the package `gguf`. A GGUF file has the experts of a layer as one tensor `[experts, out, in]` for
gate, up and down each. For Llama's architecture (so for Mixtral too) llama.cpp rotates neighbouring rows of queries and
keys by each other, where transformers rotates the halves of a head: the rows of `attn_q` and `attn_k` are moved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from moec.weights import lazy
from moec.weights.lazy import Weight
from moec.weights.weight import PackedWeight

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.+)")
_HEAD, _TABLE = "lm_head.weight", "model.embed_tokens.weight"


def name_map(architecture: str, layers: int) -> Any:
    """The package's table of names for an architecture, as `llama` or `qwen3moe`."""
    import gguf

    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(known[architecture], layers)


def to_gguf(stored: Mapping[str, Weight], config: Any, architecture: str) -> dict[str, Weight | str]:
    """GGUF's name -> weight, for a checkpoint's tensors; where the file has no place for one, its name as text.

    Args:
        stored: name in the checkpoint's files -> weight, experts one by one.
        config: of the model. architecture: GGUF's name for it.
    """
    table, found = name_map(architecture, config.num_hidden_layers), dict[str, Weight | str]()
    for name, weight in _stacked(stored).items():
        if name == _HEAD and weight is stored.get(_TABLE):
            continue  # a head that is the table is stored once
        known = table.get_name(name, try_suffixes=(".weight",))
        found[known or name] = name if known is None else _moved(known, weight, config, architecture, back=False)
    return found


def from_gguf(stored: Mapping[str, Weight], config: Any, architecture: str) -> dict[str, Weight | str]:
    """The checkpoint's name -> weight, experts one by one, for a GGUF file's tensors; one that the architecture has no
    name for stands under its own, as text."""
    ours = {theirs: name for name, theirs in _checkpoint_names(config, architecture).items()}
    found = dict[str, Weight | str]()
    for name, weight in stored.items():
        mine = ours.get(name)
        if mine is None:
            found[name] = name
        elif (expert := _EXPERT.fullmatch(mine)) is not None:
            for e in range(weight.shape[0]):
                found[f"{expert[1]}.{e}.{expert[3]}"] = lazy.select(weight, e)
        else:
            found[mine] = _moved(name, weight, config, architecture, back=True)
    return found


def _checkpoint_names(config: Any, architecture: str) -> dict[str, str]:
    """Every name that a checkpoint of the model may have -> GGUF's; an expert's for the first of a layer."""
    block, parts = "mlp", ("gate_proj", "up_proj", "down_proj")
    if config.model_type == "mixtral":
        block, parts = "block_sparse_moe", ("w1", "w3", "w2")
    layer = [f"self_attn.{x}" for x in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
    layer += ["input_layernorm", "post_attention_layernorm"]
    layer += [f"{block}.experts.0.{x}" for x in parts] + [f"{block}.gate"]
    layer += [f"mlp.{x}" for x in ("gate_proj", "up_proj", "down_proj")]
    names = ["model.embed_tokens", "model.norm", "lm_head"]
    names += [f"model.layers.{n}.{x}" for n in range(config.num_hidden_layers) for x in layer]
    table, found = name_map(architecture, config.num_hidden_layers), {}
    for name in names:
        known = table.get_name(re.sub(r"\.experts\.0\.", ".experts.", name))
        if known is not None:
            found[f"{name}.weight"] = f"{known}.weight"
    return found


def _stacked(stored: Mapping[str, Weight]) -> dict[str, Weight]:
    """The experts of a layer as one weight, under their name without a number."""
    found, experts = dict[str, Weight](), dict[str, dict[int, Weight]]()
    for name, weight in stored.items():
        if expert := _EXPERT.fullmatch(name):
            experts.setdefault(f"{expert[1]}.{expert[3]}", {})[int(expert[2])] = weight
        else:
            found[name] = weight
    return found | {name: lazy.stack([each[e] for e in range(len(each))]) for name, each in experts.items()}


def _moved(name: str, weight: Weight, config: Any, architecture: str, back: bool) -> Weight:
    """Queries and keys with the rows of a head in the order of the other side; any other weight as it is."""
    if architecture != "llama" or not name.endswith((".attn_q.weight", ".attn_k.weight")):
        return weight
    heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
    rows = torch.arange(weight.shape[0]).reshape(heads, 2, -1)  # the halves of each head
    order = rows.transpose(1, 2).flatten()
    order = order.argsort() if back else order
    text = f"rows of heads[{heads}{', back' if back else ''}]"
    found = lazy.whole(text, lambda t: t[order.to(t.device)], weight)
    coded = weight.coded
    if not isinstance(coded, PackedWeight):
        return found
    return replace(found, coded=coded.each(lambda part: lazy.whole(text, lambda t: t[order.to(t.device)], part)))
