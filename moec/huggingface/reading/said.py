"""What a config.json says of its sizes, and whether the class of transformers reads it there: what it does not read it
replaces by its defaults without a word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from moec.planning.written import NAMES

_SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")
_SIZE = re.compile(r"\w*(_size|_layers|_heads|experts|experts_per_tok|_dim|_rank|_window|_embeddings|_dense_replace)")
_OF_MIXTURES = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts")
_PER_LAYER = re.compile(r"\w*(layers?_types?|layers_block_type|pattern)")
_NOT_TEXT = re.compile(r"\w*(vision|visual|vit|audio|speech|image|quantization)\w*")
_OUTER = ("architectures", "model_type", "auto_map", "moec_name", "moec_source", "quantization_config")


def text_key(config: Any) -> str:
    """The entry of a config that holds the sizes of its text model; empty where they stand flat, or deeper."""
    own = config.get_text_config()
    return next((key for key, value in vars(config).items() if value is own), "") if own is not config else ""


def unread(raw: Mapping[str, Any], config: Any) -> list[str]:
    """Sizes that stand beside the entry which the class reads them from, and have no effect there.

    Args:
        raw: config.json as plain data.
        config: the same as transformers reads it.
    """
    key, own = text_key(config), config.get_text_config()
    inner = raw.get(key)
    read = {*_fields(config), *(inner if isinstance(inner, dict) else ())}
    return [
        name
        for name, value in raw.items()
        if key and type(value) is int and _SIZE.fullmatch(name) and name not in read and _lost(own, name, value)
    ]


def _lost(own: Any, name: str, value: int) -> bool:
    return hasattr(own, name) and getattr(own, name) != value


def nested(raw: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The same config with what stands flat in the entry that the class reads it from."""
    parts = {key for key, value in vars(config).items() if hasattr(value, "to_dict")}
    moved = {key: value for key, value in raw.items() if key not in parts and key not in _OUTER}
    own = config.get_text_config()
    inner = raw.get(text_key(config)) or {}
    outer = {key: value for key, value in raw.items() if key not in moved or key in _fields(config)}
    return {**outer, text_key(config): {**moved, "model_type": own.model_type, **inner}}


def by_own_names(raw: Mapping[str, Any], config: Any) -> tuple[dict[str, Any], list[str]]:
    """Sizes under the names that a class has for them, where a config uses other ones; and those it has no name for."""
    known, aliases = _fields(config), set(type(config).attribute_map)
    found, lost = dict(raw), []
    for name, others in NAMES.items():
        group = (name, *others)
        used = [key for key in group if type(raw.get(key)) is int and raw[key]]
        if not used or any(key in known | aliases for key in used):
            continue
        own = sorted((key for key in group if key in known), key=lambda key: key in aliases)
        if own:
            found[own[0]] = found.pop(used[0])
        elif name in _OF_MIXTURES:
            lost += used
    return found, lost


def _fields(config: Any) -> set[str]:
    return set(getattr(type(config), "__dataclass_fields__", ()))


def defaults(raw: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    """A note on what a config leaves to transformers' defaults, of the sizes that every model or mixture has."""
    config = model.config
    own = config.get_text_config()
    inner = raw if own is config else raw.get(text_key(config), {})
    names = [name for name in _SIZES if hasattr(own, name)]
    if any(path.endswith("experts") for path, _ in model.named_modules()):
        names += [name for name in map(partial(_own_name, own), ("num_experts", "num_experts_per_tok")) if name]
    lacking = [name for name in names if not _is_said(name, own, raw, inner)]
    values = ", ".join(f"{name} = {getattr(own, name)}" for name in lacking)
    if not values:
        return ()
    return (f"config.json does not say {', '.join(lacking)}: transformers' defaults are taken, {values}",)


def _own_name(own: Any, size: str) -> str:
    """What a class calls a size of mixtures; empty for a class without one."""
    names = [name for name in (size, *NAMES[size]) if name in _fields(own) - set(type(own).attribute_map)]
    return names[0] if names and getattr(own, names[0], None) else ""


def _is_said(name: str, own: Any, raw: Mapping[str, Any], inner: object) -> bool:
    aliases = type(own).attribute_map
    names = {name, aliases.get(name, name), *(key for key, value in aliases.items() if value == name)}
    if isinstance(inner, dict) and names & set(inner):
        return True
    value = getattr(own, name)
    for key, found in _entries(raw):
        lengths = name == "num_hidden_layers" and isinstance(found, list | str) and _PER_LAYER.fullmatch(key)
        if (key in names and found == value) or (lengths and len(found) == value):
            return True
    return False


def _entries(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every entry of a config and of the configs in it, but for those of what sees and hears."""
    for key, value in raw.items():
        if not isinstance(value, dict):
            yield key, value
        elif not _NOT_TEXT.fullmatch(key):
            yield from _entries(value)
