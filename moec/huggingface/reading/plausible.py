"""Numbers of a config that no model has. transformers builds many of them without a word, so a typing error would be
counted like a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from moec.errors import MoecError

_AT_LEAST_1 = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings", "head_dim",
)  # fmt: skip
_NEVER_NEGATIVE = re.compile(r"(\w+_)?(intermediate_size|experts|experts_per_tok(en)?|layers|heads|lora_rank|head_dim)")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk")  # how many of them a token goes to
_OWN_HEAD = ("head_dim", "kv_channels", "kv_lora_rank", "attention_head_dim", "d_kv")  # any of them says a head's size


def check_plausible(raw: Mapping[str, Any], where: str) -> None:
    """Look at a config, and at the configs in it.

    Raises:
        MoecError: M204 for a size below what a model can have, and for heads that do not divide what they share.
    """
    for name, value in raw.items():
        if isinstance(value, Mapping) and name.endswith("_config"):
            check_plausible(value, where)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        least = 1 if name in _AT_LEAST_1 else 0 if _NEVER_NEGATIVE.fullmatch(name) else None
        if least is not None and value < least:
            raise MoecError("M204", f"{name} = {value} is less than a model can have", where, f"correct {name}")
    _check_heads(raw, where)
    check_chosen(raw, where)


def check_chosen(raw: Mapping[str, Any], where: str) -> None:
    """Look at how many experts a token goes to, in a config and in those in it: eager PyTorch itself stops at more than
    there are. Raises M204."""
    for name, value in raw.items():
        if isinstance(value, Mapping) and name.endswith("_config"):
            check_chosen(value, where)
    experts = next((n for name in _EXPERTS if isinstance(n := raw.get(name), int) and n > 0), 0)
    for name in _CHOSEN:
        chosen = raw.get(name)
        if experts and isinstance(chosen, int) and not 0 < chosen <= experts:
            what = f"{name} = {chosen}: a token goes to one expert at least, and to {experts} at most"
            raise MoecError("M204", what, where, f"correct {name}")


def _check_heads(raw: Mapping[str, Any], where: str) -> None:
    heads, kv, hidden = (raw.get(n) for n in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    if not isinstance(heads, int) or not heads:
        return
    if isinstance(kv, int) and kv and heads % kv and not raw.get("kv_lora_rank"):
        what = f"{kv} heads of keys do not divide {heads} heads of queries"
        raise MoecError("M204", what, where, "correct num_key_value_heads or num_attention_heads")
    if isinstance(hidden, int) and hidden % heads and not any(raw.get(name) for name in _OWN_HEAD):
        what = f"{heads} heads do not divide a hidden_size of {hidden}, and no head_dim says how wide they are"
        raise MoecError("M204", what, where, "correct num_attention_heads, or add head_dim")
