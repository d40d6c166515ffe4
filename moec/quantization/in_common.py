"""Numbers that several weights have in common, since servers compute these weights as one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from moec.quantization.grid import Grid
from moec.quantization.sequential import Key, key_of
from moec.quantization.small_floats import overall_of
from moec.recognition.weight_roles import Use
from moec.weights.weight import Weight


def overalls_of(todo: Sequence[tuple[Use, Grid]]) -> dict[Key, Weight]:
    """The number for the whole weight of each `nvfp4` that has it in common with others: of what reads the same tokens,
    such as queries, keys and values, or gate and up. A stack of experts is one weight already."""
    together: dict[tuple[fx.Node, ...], dict[Key, Weight]] = {}
    for use, grid in todo:
        if grid.format == "nvfp4" and use.kind not in ("experts", "embeddings") and use.weight is not None:
            tokens = tuple(node for node in use.node.all_input_nodes if node.op != "get_attr")
            together.setdefault(tokens, {})[key_of(use, grid)] = use.weight
    found: dict[Key, Weight] = {}
    for weights in together.values():
        if len(weights) > 1:
            found |= dict.fromkeys(weights, overall_of([*weights.values()]))
    return found
