"""A graph as its operators and how they are wired, whatever form its weights are stored in."""

from __future__ import annotations

from torch import fx

from moec.program.dialect_call import DEQUANTIZE, DEQUANTIZE_FLOAT, PACKED, DequantizeCall, DequantizeFloatCall
from moec.program.program import Program


def operators(program: Program) -> tuple[str, ...]:
    """A line each operator, inputs and outputs among them. Programs that differ in nothing but the numbers of their
    weights, or in which of them are packed, have the same."""
    names, lines = dict[fx.Node, str](), list[str]()
    for node in program.graph.nodes:
        codes = _codes(node)
        if node.op == "get_attr":
            names[node] = str(node.target)
        elif codes is not None:
            names[node] = names[codes].removesuffix(PACKED)
        else:
            names[node] = f"%{len(lines)}"
            lines.append(f"{node.op} {node.target}{fx.map_arg((node.args, node.kwargs), names.__getitem__)}")
    return tuple(lines)


def _codes(node: fx.Node) -> fx.Node | None:
    """What a node unpacks; None for one that unpacks nothing."""
    if node.target == DEQUANTIZE:
        return DequantizeCall(node).node_of("packed")
    return DequantizeFloatCall(node).node_of("codes") if node.target == DEQUANTIZE_FLOAT else None
