"""What a run of a program takes, estimated from its graph, so that a proof looks at long texts only where it can."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from moec.program.moe_call import EXPERTS, MOE, MoeCall
from moec.program.program import Program
from moec.program.signature import size_of

_ops = torch.ops.aten
_ATTENTION = (torch.ops.moec.attention.default, _ops.scaled_dot_product_attention.default)
_PRODUCTS = {  # operator -> which argument's last dimension is summed over
    _ops.linear.default: 0, _ops.matmul.default: 0, _ops.mm.default: 0, _ops.bmm.default: 0,
    _ops.addmm.default: 1, _ops.baddbmm.default: 1,
}  # fmt: skip
_CONVOLUTIONS = (_ops.convolution.default, _ops.conv1d.default, _ops.conv2d.default)
# of one run: the largest value, with the copies that its operator and a comparison in float64 make; what goes in and
# out, on either side
_COPIES, _SIDES = 6, 3

Shape = Sequence[Any]  # of numbers, and of torch.SymInt


@dataclass(frozen=True)
class Cost:
    """Of one run on one side. flops: of matrix products, attention, convolutions and scans. bytes: of values in memory
    at once, about; weights don't count."""

    flops: float
    bytes: float

    def __str__(self) -> str:
        return f"{self.flops:.1e} FLOPs and {self.bytes / 2**30:.1f} GiB"


class Costs:
    """The cost of a program's runs by the sizes of its dynamic dimensions; exact for products, an estimate for
    memory."""

    def __init__(self, program: Program) -> None:
        nodes = list(program.graph.nodes)
        given = [n.meta["val"].shape for n in nodes if n.op == "placeholder"]
        pairs = [p for shape, i in zip(given, program.inputs, strict=True) for p in zip(shape, i.shape, strict=True)]
        self._names = {str(size): dim for size, dim in pairs if isinstance(dim, str)}
        self._work = [w for node in nodes for w in _work(node)]
        self._values = [v for node in nodes for v in _values(node)]
        ends = [n for n in nodes if n.op == "placeholder"] + [a for a in nodes[-1].args[0] if isinstance(a, fx.Node)]
        self._ends = [(v.element_size(), v.shape) for n in ends if isinstance(v := n.meta.get("val"), Tensor)]

    def of(self, sizes: Mapping[str, int]) -> Cost:
        """At these sizes."""
        given = defaultdict(int, sizes)
        known: dict[Any, int] = {symbol: size_of(dim, given) for symbol, dim in self._names.items()}
        flops = sum(factor * _count(shape, known) for factor, shape in self._work)
        largest = max((size * _count(shape, known) for size, shape in self._values), default=0)
        ends = sum(size * _count(shape, known) for size, shape in self._ends)
        return Cost(float(flops), float(_COPIES * largest + _SIDES * ends))


def _work(node: fx.Node) -> Iterator[tuple[float, Shape]]:
    """How much a node computes, as a factor and a shape to multiply it by."""
    if node.op != "call_function":
        return
    shapes = [_shape(a) for a in node.args]
    if node.target in _PRODUCTS:
        summed = shapes[_PRODUCTS[node.target]]
        yield 2.0, (*_shape(node), summed[-1] if summed else 1)
    elif node.target in _ATTENTION:
        query, key, value = shapes[:3]
        yield 2.0, (*query[:3], key[2], query[3])
        yield 2.0, (*query[:3], key[2], value[3])
    elif node.target in _CONVOLUTIONS:
        yield 2.0, (*_shape(node), *shapes[1][1:])
    elif node.target is torch.ops.moec.causal_conv.default:
        yield 2.0, (*_shape(node), shapes[2][1])
    elif node.target is torch.ops.moec.linear_attention.default:
        key, value = shapes[1], shapes[2]
        yield 8.0, (*value, key[3])  # decay, look-up, writing and reading of the memory
    elif node.target is torch.ops.moec.selective_scan.default:
        yield 6.0, (*shapes[0], shapes[2][1])  # decay, writing and reading of the state
    else:
        yield from _routed_work(node)


def _routed_work(node: fx.Node) -> Iterator[tuple[float, Shape]]:
    if node.target in (EXPERTS, MOE):
        call = MoeCall(node)
        for weight in (call.w_in, call.w_out):
            yield 2.0 * call.top_k, (*_shape(call.x)[:-1], *_shape(weight)[1:])


def _values(node: fx.Node) -> Iterator[tuple[int, Shape]]:
    """Element size and shape of what a node makes, where that hangs on the inputs' sizes."""
    value = node.meta.get("val")
    if isinstance(value, Tensor) and any(isinstance(n, torch.SymInt) for n in value.shape):
        yield value.element_size(), value.shape
    if node.target in _ATTENTION:
        query, key = _shape(node.args[0]), _shape(node.args[1])
        yield 4, (*query[:3], key[2])  # scores, in float32


def _shape(node: Any) -> Shape:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _count(shape: Shape, known: dict[Any, int]) -> int:
    return math.prod(_size(n, known) for n in shape)


def _size(size: Any, known: dict[Any, int]) -> int:
    """A number that may be an expression of dimensions; what else it hangs on counts as 1. Found values are kept in
    `known`, by the expression itself: to write one takes longer than to compute it."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    if expression not in known:
        found = expression.subs({s: known.get(str(s), 1) for s in expression.free_symbols})
        known[expression] = max(0, int(found))
    return known[expression]
