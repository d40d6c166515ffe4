"""Dense feed-forward networks, found by structure in a captured graph, never by class name.

An FFN is what stands between one input and a linear layer back to its width: one or two linear layers that read the
input, then pointwise operations on nothing but their outputs. Which activation those operations are is found by running
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import fx
from torch._ops import OpOverload

from moec.dialect import Activation
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.recognition.activation import identify, is_split
from moec.recognition.linear import Linear, find_linears, form_of, passes_through, without_views
from moec.weights import lazy as weights
from moec.weights.lazy import Weight

aten = torch.ops.aten
_REGION_LIMIT = 64

# what some families put between the two products and an expert cannot hold; going on behind it makes the miss nameable
_NORMS = (
    aten.layer_norm.default,
    aten.rms_norm.default,
    aten.native_layer_norm.default,
    aten.mean.dim,
    aten.topk.default,
    aten.softmax.int,
    aten.cumsum.default,
    aten.std.dim,
    aten.dropout.default,
)


@dataclass(frozen=True)
class Ffn:
    """A dense FFN in a graph: `w_out @ activation(w_in @ x + b_in) + b_out`.

    Attributes:
        x: its input node `[..., H]`. output: the node to replace, of the same shape.
        w_in: `[F*I, H]`, gate rows before up rows when gated (F = 2, else 1). b_in: `[F*I]` or None.
        w_out: `[H, I]`. b_out: `[H]` or None. All lazy.
        activation: what stands between the two, found by value.
        path: the module that holds it, for names: `model.layers.0.mlp`.
        nodes: the nodes between x and output, output included.
    """

    x: fx.Node
    output: fx.Node
    w_in: Weight
    b_in: Weight | None
    w_out: Weight
    b_out: Weight | None
    activation: Activation
    path: str
    nodes: frozenset[fx.Node]

    @property
    def hidden(self) -> int:
        """H, the width of input and output."""
        return self.w_out.shape[0]

    @property
    def intermediate(self) -> int:
        """I, the number of hidden neurons."""
        return self.w_out.shape[1]

    def parts(self) -> list[tuple[Weight, Weight | None]]:
        """The first matrix and its bias as `[I, H]`, `[I]` pieces: gate and up when gated, else the one."""
        size = self.intermediate
        cuts = [(k * size, (k + 1) * size) for k in range(self.activation.rows_per_neuron)]
        return [
            (weights.rows(self.w_in, a, b), None if self.b_in is None else weights.rows(self.b_in, a, b))
            for a, b in cuts
        ]


class Misfit(NamedTuple):
    """A node that looks like the end of an FFN, and why it isn't taken for one."""

    node: fx.Node
    reason: str


@dataclass(frozen=True)
class _Region:
    """What stands between a last linear layer and the linear layers that it depends on: their outputs and the nodes
    after them."""

    sources: tuple[Linear, ...]
    nodes: tuple[fx.Node, ...]
    foreign: fx.Node | None


def find_ffns(program: Program) -> tuple[list[Ffn], list[Misfit]]:
    """All dense FFNs in graph order, and the near matches with the reason why each was left out.

    A weight that something else reads too (tied) is no obstacle. Attention is none (its projections do not depend on
    their inputs row by row), nor is a classifier's head (it does not lead back to the width that it started from).
    """
    linears = find_linears(program)
    found: list[Ffn] = []
    misses: list[Misfit] = []
    for last in linears.values():
        region = _region(program, last, linears)
        if region is None or any(s.node in f.nodes for s in region.sources for f in found):
            continue
        match = _match(program, last, region)
        if isinstance(match, Ffn):
            found.append(match)
        else:
            misses.append(match)
    return found, misses


def ends_ffn(program: Program, last: Linear, linears: dict[fx.Node, Linear]) -> bool:
    """Whether a linear layer stands where a feed-forward network ends: behind an activation of one or two others that
    read a value as wide as its output. What the activation is, is not asked."""
    return _region(program, last, linears) is not None


def _region(program: Program, last: Linear, linears: dict[fx.Node, Linear]) -> _Region | None:
    """Walk back from the last linear layer; None unless all paths end in one or two linear layers of one input as wide
    as its output."""
    if not last.x.all_input_nodes:
        return None
    todo, seen, sources, foreign = [last.x], {last.x}, [], None
    while todo:
        node = todo.pop()
        if node in linears:
            sources.append(linears[node])
            continue
        if node.op == "get_attr":
            foreign = foreign or (None if program.weights[str(node.target)].size_bytes <= 8 else node)
            continue
        if not _may_pass(node) or len(seen) > _REGION_LIMIT:
            return None
        foreign = foreign or (None if _is_inside(node) else node)
        inputs = node.args[:1] if passes_through(node) or is_split(node) else node.all_input_nodes
        new = [n for n in inputs if isinstance(n, fx.Node) and n not in seen]
        todo, seen = todo + new, seen | set(new)
    if not 1 <= len(sources) <= 2 or len(seen) == 1 or len({without_views(s.x) for s in sources}) > 1:
        return None
    if sources[0].weight.shape[1] != last.weight.shape[0] or all(passes_through(n) or n in linears for n in seen):
        return None
    order = [n for n in program.graph.nodes if n in seen]
    return _Region(tuple(sorted(sources, key=lambda s: order.index(s.node))), tuple(order), foreign)


def _is_inside(node: fx.Node) -> bool:
    pointwise = isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags
    return node.op == "call_function" and (pointwise or passes_through(node) or is_split(node))


def _may_pass(node: fx.Node) -> bool:
    return _is_inside(node) or node.target in _NORMS


def _match(program: Program, last: Linear, region: _Region) -> Ffn | Misfit:
    first, width = region.sources, last.weight.shape[1]
    widths = [s.weight.shape[0] for s in first]
    if region.foreign is not None:
        return Misfit(last.node, f"{region.foreign.name} ({region.foreign.target}) stands between the linear layers")
    if widths not in ([width], [2 * width], [width, width]):
        return Misfit(
            last.node, f"linear layers of {' and '.join(map(str, widths))} rows before one of {width} columns"
        )
    order = identify(program, region.nodes, [s.node for s in first], widths, last.x, width)
    if isinstance(order, str):
        return Misfit(last.node, order)
    ends = _ends(first, last)
    if ends is None:
        return Misfit(last.node, "its input and its output differ in shape or dtype")
    activation, swapped = order
    w_in, b_in = _first_matrix(first, width, swapped)
    x, output = ends
    nodes = _between(x, output)
    path = _module_path([s.node for s in first] + [last.node]) or output.name
    return Ffn(x, output, w_in, b_in, last.weight, last.bias, activation, path, frozenset(nodes))


def _ends(first: tuple[Linear, ...], last: Linear) -> tuple[fx.Node, fx.Node] | None:
    """An input and an output node of equal shape and dtype: behind or before the views that fold leading dimensions
    away."""
    users = list(last.node.users)
    outputs = [users[0], last.node] if len(users) == 1 and without_views(users[0]) is last.node else [last.node]
    inputs = [without_views(first[0].x), first[0].x]
    return next(((x, y) for y in outputs for x in inputs if form_of(x) == form_of(y)), None)


def _first_matrix(first: tuple[Linear, ...], width: int, swapped: bool) -> tuple[Weight, Weight | None]:
    """The linear layers before the activation as one, gate rows before up rows."""
    pieces = [(s.weight, s.bias) for s in first]
    if len(first) == 1 and swapped:
        w, b = pieces[0]
        pieces = [
            (weights.rows(w, a, a + width), None if b is None else weights.rows(b, a, a + width)) for a in (0, width)
        ]
    pieces = pieces[::-1] if swapped else pieces
    if len(pieces) == 1:
        return pieces[0]
    matrix = weights.concat([w for w, _ in pieces], 0)
    biases = [weights.zeros((w.shape[0],), w.dtype) if b is None else b for w, b in pieces]
    return matrix, None if all(b is None for _, b in pieces) else weights.concat(biases, 0)


def _between(x: fx.Node, output: fx.Node) -> set[fx.Node]:
    """The nodes that lead from x to output, output included."""
    inside: set[fx.Node] = set()
    todo = [output]
    while todo:
        node = todo.pop()
        if (
            node is not x
            and node not in inside
            and node.op == "call_function"
            and isinstance(node.meta.get("val"), (torch.Tensor, tuple, list))
        ):
            inside.add(node)
            todo += node.args[:1] if passes_through(node) else node.all_input_nodes  # type: ignore[arg-type]
    return inside


def _module_path(nodes: list[fx.Node]) -> str:
    """The innermost module that holds all of these nodes, empty if none is known."""
    paths = [path.split(".") if (path := module_path(n)) else [] for n in nodes]
    common = 0
    while all(len(p) > common and p[common] == paths[0][common] for p in paths):
        common += 1
    return ".".join(paths[0][:common])
