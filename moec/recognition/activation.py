"""Which activation a piece of graph computes, found by running it on random values.

Names and operator sequences say little: GELU alone is written in six ways. Values say everything, and two activations
that agree on them to seven digits may stand for each other.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from moec.dialect import ACTIVATIONS, Activation
from moec.program.program import Program
from moec.recognition.linear import passes_through, value_of

aten = torch.ops.aten
_PROBES = 512
_TOLERANCE = 1e-6  # GELU and its tanh form differ by 5e-4, constants that were written with nine digits by 1e-9

# operators that cut the last dimension, and where their `dim` argument stands
_SPLITS = {
    aten.chunk.default: 2,
    aten.split.Tensor: 2,
    aten.split_with_sizes.default: 2,
    aten.slice.Tensor: 1,
    aten.narrow.default: 1,
    aten.glu.default: 1,
}


def is_split(node: fx.Node) -> bool:
    """Whether a node cuts its input along the last dimension, or picks one of such pieces."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and is_split(node.args[0])
    return node.target in _SPLITS and _dim(node) in (-1, len(value_of(node.args[0]).shape) - 1)


def _dim(node: fx.Node) -> int:
    place = _SPLITS[node.target]  # type: ignore[index]
    default = -1 if node.target == aten.glu.default else 0
    return int(node.args[place] if len(node.args) > place else node.kwargs.get("dim", default))  # type: ignore[arg-type]


def candidates(gated: bool) -> list[Activation]:
    """Every activation that is tried; quick-gelu is `silu` with alpha 1.702."""
    names = [n for n in ACTIVATIONS if gated or n != "identity"]
    return [Activation(n, gated) for n in names] + [Activation("silu", gated, alpha=1.702)]


def identify(
    program: Program,
    nodes: Sequence[fx.Node],
    sources: Sequence[fx.Node],
    widths: Sequence[int],
    end: fx.Node,
    width: int,
) -> tuple[Activation, bool] | str:
    """Name the function that `nodes` compute.

    Args:
        nodes: the region in graph order, `sources` included.
        sources: the one or two nodes that it depends on. widths: their last dimensions.
        end: its result `[..., width]`.

    Returns:
        The activation and whether the gate comes after the up half (in the second source, or the second half of the
            only one);
        or, as text, why it is none that moec knows.
    """
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(_PROBES, w, generator=generator, dtype=torch.float64) * 3 for w in widths]
    for value in values:
        value[::8] *= 1e3  # a bound on what goes in or comes out shows there
    try:
        result = _run(program, nodes, dict(zip(sources, values, strict=True)))[end]
    except Exception as error:  # an operator that cannot run on plain rows is no activation of ours
        return (
            f"what stands between its linear layers cannot be run row by row: {type(error).__name__}: "
            f"{str(error).splitlines()[0][:120]}"
        )
    h = torch.cat(values, dim=-1)
    gated = h.shape[-1] == 2 * width
    orders = [(h, False), (torch.cat(h.chunk(2, dim=-1)[::-1], dim=-1), True)] if gated else [(h, False)]
    found = [(rule, swapped) for x, swapped in orders for rule in candidates(gated) if _same(rule(x), result)]
    if len({rule for rule, _ in found}) == 1 and (len(found) == 1 or found[0][0].name == "identity"):
        return found[0]
    kind = "gated activation" if gated else "activation"
    return (
        f"its {kind} is none of {', '.join(dict.fromkeys(rule.name for rule in candidates(gated)))}"
        if not found
        else f"its {kind} is ambiguous"
    )


def _same(a: Tensor, b: Any) -> bool:
    return isinstance(b, Tensor) and a.shape == b.shape and torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE)


def _run(program: Program, nodes: Sequence[fx.Node], values: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    """Interpret nodes in float64 on rows: casts and views that keep the last dimension do nothing there."""
    env = {node: value.clone() for node, value in values.items()}
    for node in nodes:
        if node in env:
            continue
        if node.op == "get_attr":
            env[node] = program.weights[str(node.target)].load().double()
        elif passes_through(node):
            env[node] = env[node.args[0]]  # type: ignore[index]
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
            env[node] = node.target(*_on_rows(node, list(args)), **{k: v for k, v in kwargs.items() if k != "dim"})  # type: ignore[operator]
    return env


def _on_rows(node: fx.Node, args: list[Any]) -> list[Any]:
    """The arguments with the cut moved to the last of two dimensions."""
    if node.target in _SPLITS:
        place = _SPLITS[node.target]  # type: ignore[index]
        args = [*args[:place], -1, *args[place + 1 :]]
    return args
