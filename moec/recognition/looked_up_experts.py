"""Experts of one neuron each that a token looks up in tables: a row of one table in, the same row of another out.

Product keys choose among so many (PEER: https://arxiv.org/abs/2407.04153; Doge). Nothing is rewritten here: a look-up
already computes no other expert.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import fx

from moec.program.program import Program
from moec.program.provenance import module_paths
from moec.recognition.linear import value_of

aten = torch.ops.aten


@dataclass(frozen=True)
class LookedUp:
    """One mixture of experts in tables.

    Attributes:
        module: that holds the tables. experts, top_k: rows of a table, and how many of them a token reads.
        hidden: width of a row. tables: the look-ups, `[…, top_k, hidden]` each.
    """

    module: str
    experts: int
    top_k: int
    hidden: int
    tables: tuple[fx.Node, ...]

    @property
    def parameters(self) -> int:
        """Of all tables."""
        return len(self.tables) * self.experts * self.hidden

    @property
    def active_parameters(self) -> int:
        """Those that one token uses."""
        return len(self.tables) * self.top_k * self.hidden


def find_looked_up(program: Program) -> list[LookedUp]:
    """Every pair of tables, or more, that are looked up at the same rows, which a rank of scores chose; in graph
    order."""
    found: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    ranked: set[fx.Node] = set()  # numbers that a rank chose
    for node in program.graph.nodes:
        if node.target is aten.topk.default or any(source in ranked for source in node.all_input_nodes):
            value = node.meta.get("val")
            if node.target is aten.topk.default or (isinstance(value, torch.Tensor) and not value.is_floating_point()):
                ranked.add(node)
        if node.target is aten.embedding.default and node.args[1] in ranked:
            found[node.args[1]].append(node)
    return [_of(tables) for tables in found.values() if len(tables) > 1]


def _of(tables: list[fx.Node]) -> LookedUp:
    rows, width = value_of(tables[0].args[0]).shape
    top_k = value_of(tables[0].args[1]).shape[-1]
    paths = module_paths(tables[0])
    return LookedUp(paths[-2] if len(paths) > 1 else "", int(rows), int(top_k), int(width), tuple(tables))
