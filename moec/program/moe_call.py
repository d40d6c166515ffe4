"""The mixture-of-experts operators of a graph, each read as one block whose parts have names."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from moec.dialect import Activation, Routing
from moec.program.dialect_call import ROUTE as ROUTE
from moec.program.dialect_call import DialectCall, position
from moec.program.program import Program

EXPERTS, MOE = torch.ops.moec.experts.default, torch.ops.moec.moe.default
MATRICES, BIASES = ("w_in", "w_out"), ("b_in", "b_out")  # of the experts, each with a row an expert
_TOKENS = ("x", "ids", "weights")


def moe_nodes(program: Program) -> list[fx.Node]:
    """The program's mixture-of-experts operators, in graph order."""
    return program.nodes(EXPERTS, MOE)


def matrix_positions(operator: Any) -> tuple[int, int]:
    """At which positions w_in and w_out of `moec::experts` or `moec::moe` stand."""
    first, second = (position(operator, name) for name in MATRICES)
    return first, second


class MoeCall(DialectCall):
    """A `moec::experts` or `moec::moe`, whichever it is: what the other operator alone has is None here.

    Shapes are read off `meta["val"]` of nodes, or off the values of an interpreter.
    """

    operators = (EXPERTS, MOE)

    @property
    def fused(self) -> bool:
        """Whether the operator holds its router itself: `moec::moe`."""
        return bool(self.target is MOE)

    # ------------------------------------------------------------------ tokens and router
    @property
    def x(self) -> Any:
        """Tokens `[..., H]`."""
        return self.argument("x")

    @property
    def ids(self) -> Any:
        """Chosen experts `[..., K]` of a `moec::experts`."""
        return self.argument("ids")

    @property
    def weights(self) -> Any:
        """What each chosen expert counts, `[..., K]`, of a `moec::experts`."""
        return self.argument("weights")

    @property
    def router(self) -> Any:
        """The router's weight `[E, H]` of a `moec::moe`."""
        return self.argument("router_weight")

    @property
    def router_bias(self) -> Any:
        """`[E]`, part of the logits, or None."""
        return self.argument("router_bias")

    @property
    def selection_bias(self) -> Any:
        """`[E]`, added to the scores for the choice only, or None."""
        return self.argument("selection_bias")

    @property
    def routing(self) -> Routing | None:
        """The rule of a `moec::moe`."""
        return Routing.of(self.kwargs) if self.fused else None

    @property
    def top_k(self) -> int:
        """K, how many experts a token goes to."""
        return self.routing.top_k if self.routing else int(_shape(self.ids)[-1])

    @property
    def experts_a_token(self) -> int:
        """How many experts a token of the model goes to: K, times the rows that each token stands in where `x` is an
        expansion `[T, K, H]` of tokens, one row for each of a token's experts."""
        x: Any = self.x
        expanded = isinstance(x, fx.Node) and x.target is torch.ops.aten.expand.default
        shape: Any = _shape(x) if expanded else ()
        before: Any = _shape(x.args[0]) if expanded else ()
        copies = int(shape[-2]) if len(shape) > 2 and len(before) == len(shape) and before[-2] == 1 else 1
        return copies * self.top_k

    # ------------------------------------------------------------------ experts
    @property
    def w_in(self) -> Any:
        """`[E, F*I, H]`."""
        return self.argument("w_in")

    @property
    def w_out(self) -> Any:
        """`[E, H, I]`."""
        return self.argument("w_out")

    @property
    def b_in(self) -> Any:
        """`[E, F*I]`, or None."""
        return self.argument("b_in")

    @property
    def b_out(self) -> Any:
        """`[E, H]`, or None."""
        return self.argument("b_out")

    @property
    def experts(self) -> int:
        """E, how many experts there are."""
        return int(_shape(self.w_in)[0])

    @property
    def activation(self) -> Activation:
        """Between the two products of an expert."""
        return Activation.of(self.kwargs)

    @property
    def score_before(self) -> bool:
        """Whether weights multiply the experts' input, not their output."""
        return bool(self.argument("score_before"))

    def per_expert(self) -> dict[str, Any]:
        """The tensors that were given with one row an expert, by name and in order: all but tokens and their routes."""
        return {name: value for name, value in self.tensors().items() if name not in _TOKENS}

    def expert_tensors(self) -> dict[str, Any]:
        """The matrices and biases that were given, by name and in order: the same for both operators."""
        return {name: value for name, value in self.tensors().items() if name in (*MATRICES, *BIASES)}


def _shape(value: Any) -> Any:
    return (value.meta["val"] if isinstance(value, fx.Node) else value).shape
