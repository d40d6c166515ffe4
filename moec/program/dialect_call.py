"""A call of one of the dialect's operators, with its arguments by name.

The operator's schema says at which position a name stands; this is the only place that asks. A call is read from a
graph, where its arguments are nodes, or from an interpreter, which has their values.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self

import torch
from torch import fx

from moec.dialect import Capacity, Routing

ROUTE, DEQUANTIZE = torch.ops.moec.route.default, torch.ops.moec.dequantize.default
DEQUANTIZE_FLOAT = torch.ops.moec.dequantize_float.default
PACKED = "_packed"  # how the name of a packed tensor ends; the weight that it stands for is called what stands before


@cache
def positional_names(operator: Any) -> tuple[str, ...]:
    """The names of an operator's positional arguments, in order: its tensors."""
    return tuple(a.name for a in operator._schema.arguments if not a.kwarg_only)


@cache
def _defaults(operator: Any) -> dict[str, Any]:
    return {a.name: a.default_value for a in operator._schema.arguments if a.has_default_value()}


def position(operator: Any, name: str) -> int:
    """At which position an argument of an operator stands. Raises ValueError for a name that it does not have."""
    return positional_names(operator).index(name)


def in_order(operator: Any, tensors: Mapping[str, Any]) -> tuple[Any, ...]:
    """Positional arguments by name, in the operator's order up to the last that is given; None for those left out."""
    names = positional_names(operator)
    return tuple(tensors.get(name) for name in names[: 1 + max(position(operator, name) for name in tensors)])


class DialectCall:
    """A call and its arguments by the names of the operator's schema.

    Attributes:
        operators: those whose calls a class reads.
        target: the operator. args, kwargs: as a graph or an interpreter has them.
        node: the call in a graph; None for the values of an interpreter.
    """

    operators: ClassVar[tuple[Any, ...]] = ()

    def __init__(self, node: fx.Node) -> None:
        self._set(node.target, node.args, node.kwargs)
        self.node: fx.Node | None = node

    @classmethod
    def evaluated(cls, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Self:
        """The call with values for arguments: tensors, and lazy weights where an interpreter leaves them so."""
        call = cls.__new__(cls)
        call._set(target, args, kwargs)
        call.node = None
        return call

    def _set(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        assert target in self.operators, f"{target} is no operator of {type(self).__name__}"
        self.target, self.args, self.kwargs = target, args, kwargs

    # ------------------------------------------------------------------ reading
    def argument(self, name: str) -> Any:
        """An argument, or its default where none was given; None where the operator has no argument of this name."""
        names = positional_names(self.target)
        at = names.index(name) if name in names else len(self.args)
        return self.args[at] if at < len(self.args) else self.kwargs.get(name, _defaults(self.target).get(name))

    def tensors(self) -> dict[str, Any]:
        """The positional arguments that were given, by name and in order; optional ones among them may be None."""
        return dict(zip(positional_names(self.target), self.args, strict=False))

    def given(self, **arguments: Any) -> Self:
        """The same call with other values for some arguments, by name."""
        return self.evaluated(self.target, in_order(self.target, self.tensors() | arguments), self.kwargs)

    def node_of(self, name: str) -> fx.Node:
        """An argument that must be there, as the node that it is in a graph."""
        found = self.argument(name)
        assert isinstance(found, fx.Node), f"{name} of {self.target} is not a node but {found!r}"
        return found

    # ------------------------------------------------------------------ rewriting
    def replace(self, **arguments: Any) -> None:
        """Let the call in the graph read other arguments, by name; the rest stay as they are."""
        assert self.node is not None, "an interpreter's values are in no graph"
        by_keyword = {n: v for n, v in self.kwargs.items() if n in positional_names(self.target)}
        self.node.args = in_order(self.target, self.tensors() | by_keyword | arguments)
        self.node.kwargs = {name: value for name, value in self.kwargs.items() if name not in by_keyword}
        self._set(self.target, self.node.args, self.node.kwargs)


class RouteCall(DialectCall):
    """A `moec::route`: which experts each token goes to."""

    operators = (ROUTE,)

    @property
    def logits(self) -> Any:
        """`[..., E]`."""
        return self.argument("logits")

    @property
    def bias(self) -> Any:
        """`[E]`, for the choice only, or None."""
        return self.argument("bias")

    @property
    def capacity(self) -> Any:
        """How many choices an expert takes, or None."""
        return self.argument("capacity")

    @property
    def room(self) -> Capacity | None:
        """The same with what belongs to it; of a call with values."""
        return Capacity.of(self.capacity, self.argument("counted"), self.kwargs)

    @property
    def routing(self) -> Routing:
        """The rule."""
        return Routing.of(self.kwargs)


class DequantizeCall(DialectCall):
    """A `moec::dequantize`: the weight that packed integers stand for."""

    operators = (DEQUANTIZE,)

    @property
    def packed(self) -> Any:
        """uint8 `[..., K * bits / 8]`."""
        return self.argument("packed")

    @property
    def scale(self) -> Any:
        """`[..., K / group]`."""
        return self.argument("scale")

    @property
    def zero(self) -> Any:
        """uint8 `[..., K / group]`, or None for the symmetric grid."""
        return self.argument("zero")

    @property
    def bits(self) -> int:
        """2, 4 or 8."""
        return int(self.argument("bits"))


class DequantizeFloatCall(DialectCall):
    """A `moec::dequantize_float`: the weight that small floats with shared scales stand for."""

    operators = (DEQUANTIZE_FLOAT,)

    @property
    def codes(self) -> Any:
        """uint8, one or two numbers a byte."""
        return self.argument("codes")

    @property
    def scale(self) -> Any:
        """`[]` or `[..., K / block]`."""
        return self.argument("scale")

    @property
    def overall(self) -> Any:
        """One number for the whole weight, `nvfp4` only, or None."""
        return self.argument("overall")

    @property
    def format(self) -> str:
        """`fp8` or `nvfp4`."""
        return str(self.argument("format"))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight that the call in the graph stands for."""
        assert self.node is not None
        return self.node.meta["val"].dtype  # type: ignore[no-any-return]
