"""Names of layers in what a backend says: people know `model.layers.5.mlp`, not the node `node_moe_5`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from moec.program.program import Program
from moec.program.provenance import module_path

_OVERLOAD = "_default"  # which it leaves out of them
_PREFIX = "node_"  # that torch.onnx gives the names of a program's nodes


def with_layers(facts: Mapping[str, Any], program: Program) -> dict[str, Any]:
    """A backend's facts, in which each row about a `node` names its `layer` first: the module that the node came from,
    where the program knows it."""
    layers: dict[str, str] = {}
    for node in program.graph.nodes:
        name = node.name.replace(_OVERLOAD, "")
        layers[name] = "" if name in layers else module_path(node)  # of two candidates, neither
    return {name: _named(fact, layers) for name, fact in facts.items()}


def _named(fact: Any, layers: Mapping[str, str]) -> Any:
    if not isinstance(fact, list | tuple) or not all(isinstance(row, Mapping) for row in fact):
        return fact
    read = Counter(row["weight"] for row in fact if "weight" in row)
    return [{"layer": layer, **row} if (layer := _layer(row, layers, read)) else row for row in fact]


def _layer(row: Mapping[str, Any], layers: Mapping[str, str], read: Mapping[str, int]) -> str:
    """By the weight where one row alone has it: torch.onnx counts products anew, in an order of its own."""
    own = str(row.get("weight", "")).rpartition(".")[0]
    if own and own in layers.values() and read[row["weight"]] == 1:
        return own
    return layers.get(str(row.get("node", "")).removeprefix(_PREFIX), "")
