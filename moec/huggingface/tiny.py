"""A tiny model of an architecture: its config made narrow, its weights drawn at random. What moec does with it in
seconds it does with the real one in the same way: capture, passes, lowering, proof."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from moec.errors import MoecError
from moec.huggingface.companions import copy_companions
from moec.huggingface.reading.bare import bare, described
from moec.huggingface.reading.described import cut_to, layers_to_see

HIDDEN, HEAD, FFN, RANK, KV_HEADS = 64, 16, 48, 32, 2
MOST = 50_000_000  # parameters without tables: more is not tiny, and says that a width has a name that is not known

_WIDTHS: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"hidden_size|d_model|n_embd|word_embed_proj_dim"), HIDDEN),
    (re.compile(r"(\w+_)?intermediate_size(_\w+)?|ffn_hidden_size|n_inner|ffn_dim|d_ff"), FFN),
    (re.compile(r"(global_)?head_dim|v_head_dim|qk_nope_head_dim|linear_(key|value)_head_dim|index_head_dim"), HEAD),
    (re.compile(r"qk_rope_head_dim"), HEAD // 2),
    (re.compile(r"(q|kv|o)_lora_rank"), RANK),
)
_KV = ("num_key_value_heads", "num_global_key_value_heads", "linear_num_key_heads", "num_kv_heads")
_QUERIES = ("num_attention_heads", "num_attention_heads", "linear_num_value_heads", "num_attention_heads")


def save_tiny(text: str, folder: Path, seed: int = 0) -> int:
    """Write a tiny model of the architecture that a config describes into a folder, as transformers does, with the
    tokenizer and templates that lie beside the config; returns its parameters.

    Layers are cut to the first ones that hold every kind of layer, at least two. Vocabulary, number of experts,
    routing, windows and positions stay as they are; hidden sizes, heads and ranks shrink.

    Args:
        text: see `moec.huggingface.reading.bare.bare_model`.
        folder: an existing, empty one.
        seed: of the weights.

    Raises:
        MoecError: as `bare_model` does; M206 when the architecture does not come out tiny.
    """
    model_class, config = described(text)
    config = tiny_config(model_class, config, text)
    torch.manual_seed(seed)
    model = model_class._from_config(config).eval()
    model.save_pretrained(folder)
    source = Path(text)
    if source.is_dir():
        copy_companions(source, folder, keep=True)
    return sum(p.numel() for p in model.parameters())


def tiny_config(model_class: Any, config: Any, text: str) -> Any:
    """The config made narrow and short. Raises M206 when the model that it describes cannot be made, or is not tiny."""
    config = deepcopy(config)
    layers, of = layers_to_see(bare(model_class, config, text))
    if 0 < layers < of:
        config = cut_to(config, min(max(layers, 2), of))
    try:
        narrow(config)
        model = bare(model_class, config, text)
    except MoecError as error:
        raise _refusal(text, f"made narrow, it is no model: {error.what}") from error
    except AttributeError as error:  # sizes that a config keeps layer by layer (Gemma 4)
        raise _refusal(text, f"its sizes are not read as one number: {str(error).splitlines()[0][:200]}") from error
    tables = {id(p) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m for p in m.parameters()}
    count = sum(p.numel() for p in model.parameters() if id(p) not in tables)
    if count > MOST:
        raise _refusal(text, f"made narrow, it still has {count:,} parameters")
    return config


def narrow(config: Any) -> None:
    """Shrink every width of a config and of the configs in it, in place."""
    for part in [config, *_parts(config)]:
        explicit_head = bool(getattr(part, "head_dim", None))
        heads = getattr(part, "num_attention_heads", None)
        old_head = getattr(part, "head_dim", None) or (part.hidden_size // heads if heads else 0)
        _widths(part)
        _heads(part)
        heads = getattr(part, "num_attention_heads", None)
        if heads and not explicit_head and hasattr(part, "hidden_size"):
            part.hidden_size = HEAD * heads
        _lists(part, old_head)


def _parts(config: Any) -> list[Any]:
    from transformers import PreTrainedConfig

    return [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]


def _widths(part: Any) -> None:
    for name, value in list(vars(part).items()):
        wanted = next((size for pattern, size in _WIDTHS if pattern.fullmatch(name)), None)
        if wanted is not None and isinstance(value, int) and not isinstance(value, bool) and value > wanted:
            setattr(part, name, wanted)
    if getattr(part, "qk_rope_head_dim", None) and hasattr(part, "head_dim"):
        part.head_dim = part.qk_rope_head_dim  # what rotates of a head with multi-head latent attention


def _heads(part: Any) -> None:
    """Fewer heads, in the ratio in which queries share keys."""
    shared = dict(zip(_KV, _QUERIES, strict=True))
    done: set[str] = set()
    for few, many in shared.items():
        kv, queries = getattr(part, few, None), getattr(part, many, None)
        if not (isinstance(kv, int) and isinstance(queries, int) and kv and queries) or many in done:
            continue
        ratio = max(1, queries // kv)
        keys = min(kv, KV_HEADS if ratio > 1 else 2 * KV_HEADS)
        setattr(part, few, keys)
        setattr(part, many, keys * min(ratio, 4))
        done.add(many)
    if not done and isinstance(getattr(part, "num_attention_heads", None), int):
        part.num_attention_heads = min(part.num_attention_heads, 4)
    if "linear_num_value_heads" not in done and hasattr(part, "index_n_heads"):
        part.index_n_heads = min(part.index_n_heads, 4)


def _lists(part: Any, old_head: int) -> None:
    """Factors of rotary frequencies have an entry for each pair of a head's numbers."""
    head = getattr(part, "qk_rope_head_dim", None) or getattr(part, "head_dim", None) or HEAD
    rotary: dict[str, Any] = getattr(part, "rope_parameters", None) or {}
    for name in ("long_factor", "short_factor"):
        if isinstance(rotary.get(name), list):
            share = len(rotary[name]) * 2 / old_head if old_head else 1.0
            rotary[name] = rotary[name][: max(1, int(head * share) // 2)]


def _refusal(text: str, what: str) -> MoecError:
    fix = "write a config.json with small sizes by hand, and give that"
    return MoecError("M206", what, text, fix)
