"""A graph as its operators and how they are wired, whatever form its weights are stored in."""

from __future__ import annotations

from torch import fx

from moec.program.dialect_call import DEQUANTIZE, DEQUANTIZE_FLOAT, PACKED
from moec.program.program import Program


def operators(program: Program) -> tuple[str, ...]:
    """A line each operator, inputs and outputs among them. Programs that differ in nothing but the numbers of their
    weights, or in which of them are packed, have the same."""
    names, lines = dict[fx.Node, str](), list[str]()
    for node in program.graph.nodes:
        if node.op == "get_attr":
            names[node] = str(node.target)
        elif node.target in (DEQUANTIZE, DEQUANTIZE_FLOAT):
            codes = node.args[0]
            names[node] = names[codes].removesuffix(PACKED) if isinstance(codes, fx.Node) else str(codes)
        else:
            names[node] = f"%{len(lines)}"
            lines.append(f"{node.op} {node.target}{fx.map_arg((node.args, node.kwargs), names.__getitem__)}")
    return tuple(lines)
