"""Where the routers of a program stand: the operator that computes a block's logits, the weight that it reads, and how
to put another there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from moec.execution.lockstep import OperatorCalls
from moec.program.dialect_call import RouteCall, position
from moec.program.moe_call import MOE, MoeCall
from moec.program.program import Program
from moec.recognition.linear import Linear, constant, find_linears, value_of
from moec.recognition.router_region import NotARouter, find_region, hands_on, is_routed, linear_behind
from moec.weights.lazy import Weight, from_tensor

aten = torch.ops.aten
# at which position a product takes the router's weight, where it is not 1; what it multiplies stands before it
_WEIGHT_AT: dict[Any, int] = {aten.addmm.default: 2, MOE: position(MOE, "router_weight")}


@dataclass(frozen=True)
class RouterPlace:
    """The router of one mixture-of-experts block.

    Attributes:
        block: the operator of the experts: `moec::experts`, or `moec::moe`, which holds its router itself.
        product: the operator that multiplies with the router's weight: a linear layer in any form, or `block`.
        weight: `[E, H]`, as it is multiplied with. bias: `[E]` of the logits, or None.
        stored: the name of the weight that `weight` is made of, by casts and transpositions only.
        top_k: experts that are chosen.
    """

    block: fx.Node
    product: fx.Node
    weight: Weight
    bias: Weight | None
    stored: str
    top_k: int

    @property
    def experts(self) -> int:
        """E, how many there are to choose from."""
        return self.weight.shape[0]

    def activations(self, calls: OperatorCalls) -> list[Tensor]:
        """What the router reads, `[T, H]` for each input of a run that is about to compute `product`."""
        return [x.reshape(-1, self.weight.shape[1]) for x in calls.values(_WEIGHT_AT.get(self.product.target, 1) - 1)]

    def logits(self, x: Tensor) -> Tensor:
        """The logits `[T, E]` in float32 or wider for activations `[T, H]`."""
        exact = torch.promote_types(x.dtype, torch.float32)
        return F.linear(
            x.to(exact), self.weight.load().to(exact), None if self.bias is None else self.bias.load().to(exact)
        )

    def rounded(self, program: Program, new: Tensor) -> Tensor:
        """What is multiplied with once a router `[E, H]` was written: it is stored in the old one's dtype."""
        return new.to(program.weights[self.stored].dtype).to(self.weight.dtype)

    def put(self, calls: OperatorCalls, new: Tensor) -> None:
        """Let a run that is about to compute `product` go on with another router `[E, H]`."""
        turned = self.product.target not in (aten.linear.default, MOE)
        place = _WEIGHT_AT.get(self.product.target, 1)
        calls.replace(place, (new.T if turned else new).to(value_of(self.product.args[place]).dtype).contiguous())

    def write(self, program: Program, new: Tensor, how: str) -> None:
        """Give the program another router `[E, H]`, in the old one's dtype and layout; `how` is the text of its
        origin."""
        old = program.weights[self.stored]
        turned = old.shape != self.weight.shape or not torch.equal(old.load().to(self.weight.dtype), self.weight.load())
        program.weights[self.stored] = from_tensor(
            (new.T if turned else new).to(old.dtype).contiguous().clone(), f"{how}({old.origin})"
        )


def find_router(program: Program, block: fx.Node, linears: dict[fx.Node, Linear] | None = None) -> RouterPlace:
    """The router of a block.

    Args:
        block: a `moec::experts` or `moec::moe` of the program.
        linears: `find_linears(program)`, where it is known already.

    Raises:
        NotARouter: with the reason, when its logits are not one linear layer, or something else reads the layer's
            weight.
    """
    call = MoeCall(block)
    if call.fused:
        product, weight, bias = block, constant(program, call.router), constant(program, call.router_bias)
    else:
        linear = _projection(program, call, find_linears(program) if linears is None else linears)
        product, weight, bias = linear.product, linear.weight, linear.bias
    argument = product.args[_WEIGHT_AT.get(product.target, 1)]
    stored = _only_reader(program, argument, product)
    if weight is None:
        raise NotARouter("its router's weight is computed")
    return RouterPlace(block, product, weight, bias, stored, call.top_k)


def _projection(program: Program, call: MoeCall, linears: dict[fx.Node, Linear]) -> Linear:
    ids, weights = call.node_of("ids"), call.node_of("weights")
    logits = _routed(ids) if is_routed(ids) else find_region(program, ids, weights).logits
    linear = linear_behind(logits, linears)
    if linear is None:
        raise NotARouter("its logits are not one linear layer")
    return linear


def _routed(ids: fx.Node) -> Any:
    """The logits of the `moec::route` that ids come from."""
    node: Any = ids
    while hands_on(node):
        node = node.args[0]
    return RouteCall(node.args[0]).logits


def _only_reader(program: Program, argument: Any, product: fx.Node) -> str:
    """The name of the weight behind an argument. Raises NotARouter where anything but `product` reads it, under this
    name or another."""
    node: Any = argument
    reader = product
    while isinstance(node, fx.Node):
        if len(node.users) != 1:
            raise NotARouter(
                f"its router's weight is read by {', '.join(sorted(n.name for n in node.users if n is not reader))} too"
            )
        if node.op == "get_attr":
            break
        node, reader = node.args[0], node
    if not isinstance(node, fx.Node) or program.weight_of(node) is None:
        raise NotARouter("its router's weight is computed")
    shared = _other_names(program, node)
    if shared:
        raise NotARouter(f"its router's weight is tied to {shared[0]}")
    return str(node.target)


def _other_names(program: Program, node: fx.Node) -> Sequence[str]:
    own = program.weights[str(node.target)]
    same_name = [n for n in program.graph.nodes if n.op == "get_attr" and n is not node and n.target == node.target]
    return [n.name for n in same_name] + [
        name for name, weight in program.weights.items() if weight is own and name != node.target
    ]
