"""A piece of a captured graph, run on the CPU in float64: what it computes is asked of it, not guessed from its
operators."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from moec.program.program import CPU, META, Program
from moec.recognition.linear import value_of

aten = torch.ops.aten
Sizes = Callable[[Any], int]
# operators that read only the form of an argument, and which
READS_FORM_ONLY = {aten.type_as.default: 1, aten.to.other: 1}
_OF_FORM = (
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default,
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default,
)  # fmt: skip


def inputs_of(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values a node needs; sizes need none, they follow from the shapes."""
    if not isinstance(node.meta.get("val"), Tensor | tuple | list) or node.target in _OF_FORM:
        return []
    formal = node.args[READS_FORM_ONLY[node.target]] if node.target in READS_FORM_ONLY else None
    sources = [n for n in node.all_input_nodes if n is not formal]
    return [n for n in sources if isinstance(n.meta.get("val"), Tensor | tuple | list)]


def run(
    program: Program,
    nodes: Sequence[fx.Node],
    given: Mapping[fx.Node, Any],
    size: Sizes,
) -> dict[fx.Node, Any]:
    """Interpret nodes in float64, whatever float dtypes the graph casts to.

    Args:
        nodes: in graph order. given: values of nodes, which may be among them.
        size: numbers of symbolic sizes, see `sizes`.

    Returns:
        The values of `given` and of `nodes`, without those of weights: each is read where it is used.

    Raises:
        KeyError: for a node that reads the value of one which is neither given nor among them.
    """
    env = dict(given)
    for node in nodes:
        if node in env or node.op == "get_attr":
            continue
        if isinstance(value_of(node), torch.SymInt | int) and any(n not in env for n in node.all_input_nodes):
            env[node] = size(value_of(node))
        elif node.target in READS_FORM_ONLY:
            env[node] = _value(node.args[0], program, env, size)
        else:
            read = partial(_value, program=program, env=env, size=size, reader=node)
            args, kwargs = fx.map_arg((node.args, node.kwargs), read)
            env[node] = node.target(*map(_wide, args), **{k: _wide(v) for k, v in kwargs.items()})  # type: ignore[operator]
    return env


def _value(
    node: Any, program: Program, env: Mapping[fx.Node, Any], size: Sizes,
    reader: fx.Node | None = None,
) -> Any:  # fmt: skip
    """What a node's reader gets. Raises KeyError for a node outside whose value is needed."""
    if node in env:
        return env[node]
    if node.op == "get_attr":
        return _wide(program.weights[str(node.target)].load())
    if isinstance(value_of(node), torch.SymInt | int):
        return size(value_of(node))
    if reader is not None and reader.target in _OF_FORM:
        return torch.empty([size(s) for s in value_of(node).shape], dtype=_wide(value_of(node).dtype))
    raise KeyError(node.name)


def _wide(argument: Any) -> Any:
    """Floats become float64, the meta device becomes the CPU."""
    if isinstance(argument, torch.dtype) and argument.is_floating_point:
        return torch.float64
    if isinstance(argument, Tensor):
        return argument.double() if argument.is_floating_point() else argument
    return CPU if isinstance(argument, torch.device) and argument == META else argument


def sizes(least: int = 7) -> Sizes:
    """A function from symbolic sizes to numbers, equal symbols to equal numbers; each at least `least`."""
    numbers: dict[Any, int] = {}
    fresh = itertools.count(least, 2)

    def size(value: Any) -> int:
        if isinstance(value, int):
            return value
        expression = value.node.expr
        for symbol in sorted(expression.free_symbols, key=str):
            numbers.setdefault(symbol, next(fresh))
        return int(expression.subs(numbers))

    return size


def in_order(program: Program, nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
    """Some nodes in the order of the graph."""
    some = set(nodes)
    return tuple(node for node in program.graph.nodes if node in some)
