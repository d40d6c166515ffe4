"""The experts of a mixture in plain operators, as `moec::experts` takes them: matrices in stacks, and an activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from moec.dialect import Activation
from moec.program.program import Program
from moec.recognition.activation import identify
from moec.recognition.ffn import Ffn
from moec.recognition.hand_written_region import MixtureRegion, NotAMixture, multiplying
from moec.recognition.linear import constant, value_of
from moec.recognition.matrices import Matrix
from moec.weights import lazy as weights
from moec.weights.lazy import Weight

aten = torch.ops.aten
_MOST_ADDED = 2  # times as many neurons as experts of several widths have


@dataclass(frozen=True)
class Experts:
    """`w_out @ activation(w_in @ x + b_in) + b_out`, E times.

    Attributes:
        w_in: `[E, F*I, H]`, gate rows before up rows. b_in: `[E, F*I]` or None. w_out: `[E, H, I]`. b_out: `[E, H]` or
            None. All lazy. activation: between them.
    """

    w_in: Weight
    b_in: Weight | None
    w_out: Weight
    b_out: Weight | None
    activation: Activation

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One expert on rows `[T, H]` in their dtype."""

        def row(weight: Weight) -> Tensor:
            return weight.read(expert, expert + 1)[0].to(x.dtype)

        hidden = self.activation(F.linear(x, row(self.w_in), row(self.b_in) if self.b_in else None))
        return F.linear(hidden, row(self.w_out), row(self.b_out) if self.b_out else None)


def read_experts(program: Program, region: MixtureRegion, ffns: Mapping[fx.Node, Ffn]) -> Experts:
    """The experts of a region.

    Args:
        ffns: the dense FFNs of the program, by each of their nodes: an expert of its own is one.

    Raises:
        NotAMixture: with the reason, where they are no two matrices with an activation between.
    """
    places = region.found.experts
    if len({bool(place.matrix.parts) for place in places[0]}) > 1:
        raise NotAMixture("its experts stand in stacks and in modules of their own")
    if places[0][0].matrix.parts:
        found = _of_stacks(program, region, list(dict.fromkeys(p.matrix for p in places[0])))
    else:
        own = [[ffns.get(product) for place in expert for product in place.matrix.products] for expert in places]
        found = _of_ffns([_the_one(expert) for expert in own])
    if {found.w_in.shape[2], found.w_out.shape[1]} != {int(value_of(region.x).shape[-1])}:
        raise NotAMixture("its experts read something else than its router, or are of another width")
    return found


def _the_one(found: Sequence[Ffn | None]) -> Ffn:
    if found[0] is None or any(ffn is not found[0] for ffn in found):
        raise NotAMixture("its experts are no two matrices with an activation between them")
    return found[0]


def _of_ffns(ffns: Sequence[Ffn]) -> Experts:
    if len({(ffn.activation, ffn.w_in.shape[1:], ffn.w_out.shape[:1]) for ffn in ffns}) > 1:
        raise NotAMixture("its experts differ in their tokens or in their activation")
    widths = [ffn.w_out.shape[1] for ffn in ffns]
    widest = max(widths)
    if widest * len(ffns) > _MOST_ADDED * sum(widths):
        raise NotAMixture("its experts differ so much in width that most of the widest's neurons would add nothing")
    ffns = [_widened(ffn, widest) for ffn in ffns]
    first = ffns[0]
    return Experts(
        weights.stack([ffn.w_in for ffn in ffns]),
        _biases([ffn.b_in for ffn in ffns], first.w_in),
        weights.stack([ffn.w_out for ffn in ffns]),
        _biases([ffn.b_out for ffn in ffns], first.w_out),
        first.activation,
    )


def _widened(ffn: Ffn, width: int) -> Ffn:
    """The same expert with more neurons, whose weights are zero: they add nothing."""
    more = width - ffn.w_out.shape[1]
    if not more:
        return ffn

    def rows(weight: Weight) -> Weight:
        own, parts = weight.shape[0] // ffn.activation.rows_per_neuron, []
        for start in range(0, weight.shape[0], own):
            parts += [weights.rows(weight, start, start + own), weights.zeros((more, *weight.shape[1:]), weight.dtype)]
        return weights.concat(parts, 0)

    w_out = weights.concat([ffn.w_out, weights.zeros((ffn.w_out.shape[0], more), ffn.w_out.dtype)], 1)
    return replace(ffn, w_in=rows(ffn.w_in), b_in=None if ffn.b_in is None else rows(ffn.b_in), w_out=w_out)


def _biases(found: Sequence[Weight | None], matrix: Weight) -> Weight | None:
    if all(bias is None for bias in found):
        return None
    return weights.stack([weights.zeros(matrix.shape[:1], matrix.dtype) if b is None else b for b in found])


# ---------------------------------------------------------------------- stacks
def _of_stacks(program: Program, region: MixtureRegion, matrices: Sequence[Matrix]) -> Experts:
    """Experts whose matrices stand in two or three stacks `[E, …]`."""
    hidden = int(value_of(region.x).shape[-1])
    *first, last = sorted(matrices, key=lambda m: _depth(region, m))
    if not 1 <= len(first) <= 2 or any(len(m.products) != 1 for m in matrices):
        raise NotAMixture(f"its experts have {len(matrices)} stacks of matrices, or read them more than once")
    w_out, b_out, _ = _product(program, region, last, hidden, True)
    inner = [_product(program, region, m, hidden, False) for m in first]
    widths, width = [w.shape[1] for w, _, _ in inner], w_out.shape[2]
    end = _other(multiplying(last.products[0]), last)
    sources = [node for _, _, node in inner]
    found = identify(program, _leading(region, sources, end), sources, widths, end, width)
    if isinstance(found, str):
        raise NotAMixture(found)
    activation, swapped = found
    pieces = [(w, b) for w, b, _ in inner]
    if len(pieces) == 1 and swapped:
        (w, b), cut = pieces[0], ((width, 2 * width), (0, width))
        pieces = [(_rows(w, *c), None if b is None else _rows(b, *c)) for c in cut]
    elif swapped:
        pieces = pieces[::-1]
    w_in = weights.concat([w for w, _ in pieces], 1) if len(pieces) > 1 else pieces[0][0]
    some = any(b is not None for _, b in pieces)
    b_in = weights.concat([weights.zeros(w.shape[:2], w.dtype) if b is None else b for w, b in pieces], 1)
    return Experts(w_in, b_in if some else None, w_out, b_out, activation)


def _leading(region: MixtureRegion, sources: Sequence[fx.Node], end: fx.Node) -> list[fx.Node]:
    """The nodes from the first products to the last one's input, in graph order."""
    found, back = set(sources), {end}
    for node in region.nodes:
        if any(n in found for n in node.all_input_nodes):
            found.add(node)
    for node in reversed(region.nodes):
        if any(u in back for u in node.users):
            back.add(node)
    return [n for n in region.nodes if n in found and n in back]


def _rows(weight: Weight, start: int, stop: int) -> Weight:
    return weights.rowwise(f"[:, {start}:{stop}]", lambda t: t[:, start:stop], weight)


def _depth(region: MixtureRegion, matrix: Matrix) -> int:
    return region.nodes.index(multiplying(matrix.products[0]))


def _product(
    program: Program, region: MixtureRegion, matrix: Matrix, hidden: int, is_last: bool
) -> tuple[Weight, Weight | None, fx.Node]:
    """A stack as `[E, out, in]`, its bias `[E, out]` and the node where both are in."""
    weight, product = constant(program, matrix.node), multiplying(matrix.products[0])
    if weight is None:
        raise NotAMixture(f"its matrices {matrix.name} are computed")
    _, rows, columns = weight.shape
    if rows == columns:
        raise NotAMixture(f"its matrices {matrix.name} are square, and nothing tells their rows from their columns")
    width = (rows if columns == hidden else columns) if hidden in (rows, columns) else 0
    if not width:
        raise NotAMixture(f"its matrices {matrix.name} have no side of the tokens' {hidden}")
    straight = rows == (hidden if is_last else width)
    own = weight if straight else weights.transpose(weight, 1, 2)
    bias, node = _bias(program, product, own.shape[:2])
    return own, bias, node


def _bias(program: Program, product: fx.Node, shape: tuple[int, ...]) -> tuple[Weight | None, fx.Node]:
    """What is added to a product right behind it, where it is a constant of this many numbers."""
    users = list(product.users)
    if len(users) != 1 or users[0].target != aten.add.Tensor or users[0].kwargs:
        return None, product
    other: Any = next((a for a in users[0].args if a is not product), None)
    while isinstance(other, fx.Node) and other.op == "call_function" and other.target in _FORMS:
        other = other.args[0]
    bias = constant(program, other)
    if bias is None or bias.shape[:1] != shape[:1] or torch.Size(bias.shape).numel() != shape[0] * shape[1]:
        return None, product
    return weights.rowwise(f"reshape{list(shape)}", lambda t: t.reshape(len(t), shape[1]), bias), users[0]


_FORMS = (
    aten.unsqueeze.default, aten.view.default, aten.reshape.default, aten.expand.default, aten.slice.Tensor,
    aten.index.Tensor,
)  # fmt: skip


def _other(product: fx.Node, matrix: Matrix) -> fx.Node:
    """What a product multiplies a stack with."""
    read = {matrix.node, *matrix.products} - {product}
    others = [n for n in product.all_input_nodes if n not in read and value_of(n).is_floating_point()]
    if len(others) != 1:
        raise NotAMixture(f"{product.name} multiplies more than tokens and experts")
    return others[0]
