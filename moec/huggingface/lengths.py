"""Which numbers of a model's config speak of lengths: there, a model may behave in another way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SPEAK = (
    "window", "length", "position", "chunk", "block", "context", "n_ctx", "seq_len", "distance", "local_attention",
    "floor_scale",
)  # fmt: skip
_OTHER = ("num_", "layer", "pattern", "type", "token_id")  # counts of other things, whatever else the name says


def config_lengths(config: Any) -> dict[str, int]:
    """Every whole number above 1 of a transformers config whose name speaks of a window, a length, a position, a chunk,
    a block or a context, by its name: of the text model, and of its rotary embedding."""
    return dict(_lengths(config.get_text_config().to_dict()))


def _lengths(entries: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in entries.items():
        if isinstance(value, Mapping) and name.startswith(("rope", "full", "sliding")):
            yield from _lengths(value)
        if not isinstance(name, str) or not any(part in name for part in _SPEAK) or any(p in name for p in _OTHER):
            continue
        found = value if isinstance(value, list | tuple) else [value]
        numbers = sorted({n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 1})
        for k, number in enumerate(numbers):
            yield (f"{name}.{k}" if len(numbers) > 1 else name), number
