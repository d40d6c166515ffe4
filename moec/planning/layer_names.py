"""Numbers of layers in the dotted names of parameters."""

from __future__ import annotations

import re

LAYER = re.compile(r"(|.*?\.)(layers|h|blocks|block)\.(\d+)(?=\.|$)")  # the outermost list of layers in a name


def layer_number(name: str) -> int | None:
    """The number of the layer that a parameter of this name is in; None for one outside the layers."""
    found = LAYER.match(name)
    return int(found[3]) if found else None


def in_layer(name: str, number: int) -> str:
    """The same name in another layer."""
    found = LAYER.match(name)
    return f"{name[: found.start(3)]}{number}{name[found.end(3) :]}" if found else name
