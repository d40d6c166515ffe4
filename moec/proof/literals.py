"""Numbers that stand in a model's code, not in its weights: epsilons of norms, limits of clamps, thresholds.

Few inputs come near them: a norm's epsilon shows in rows of almost zeros only, a clamp at 20 in none that was drawn. A
pass or a backend that drops or changes one would pass every comparison of outputs; so each must be among the engine's
constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from moec.program.program import Program
from moec.program.provenance import module_path
from moec.targets.backend import Constant

SMALL = 64  # elements: numbers of the code are scalars, at most one for each of a few channels
TINY, HUGE = (
    1e-15,
    6e4,
)  # what adds nothing to any sum, and what no half-precision number exceeds: nobody needs to keep them
EPSILON = 1e-2  # a sum with less than that guards a division

ATEN = torch.ops.aten
_NORMS = {ATEN.layer_norm, ATEN.rms_norm, ATEN.group_norm, ATEN.native_layer_norm, ATEN.instance_norm}
_BOUNDS = {ATEN.clamp, ATEN.clamp_min, ATEN.clamp_max, ATEN.hardtanh, ATEN.gt, ATEN.lt, ATEN.ge, ATEN.le}
_SUMS = {ATEN.add, ATEN.sub}
_DIALECT = {"limit", "softcap", "cap", "up_cap"}


def missing_literals(program: Program, held: Mapping[str, Constant]) -> Iterator[tuple[str, float]]:
    """The numbers of a program that are in no constant of an engine: (node and its module, number), each number
    once."""
    there, seen = set(_numbers(held.values())), set[float]()
    for node, value in literals(program):
        if value not in seen and not (_roundings(value) & there):
            seen.add(value)
            yield f"{node.name} {module_path(node)}".strip(), value


def literals(program: Program) -> Iterator[tuple[fx.Node, float]]:
    """Epsilons, bounds and thresholds in a graph, as far as they are applied to what depends on an input: others are
    folded."""
    alive = set[fx.Node]()
    for node in program.graph.nodes:
        if node.op == "placeholder" or any(n in alive for n in node.all_input_nodes):
            alive.add(node)
            for value in _of(node):
                if TINY < abs(value) < HUGE and abs(value) != 1.0:
                    yield node, value


def _of(node: fx.Node) -> Iterator[float]:
    packet = getattr(node.target, "overloadpacket", None)
    numbers = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, int | float) and not isinstance(a, bool)]
    if packet in _NORMS:
        yield from (n for n in numbers if isinstance(n, float) and n < EPSILON)
    elif packet in _BOUNDS and _is_float(node.args[0]):
        yield from map(float, numbers)
    elif packet in _SUMS and _is_float(node):
        yield from (n for n in numbers if isinstance(n, float) and abs(n) < EPSILON)
    elif getattr(node.target, "namespace", "") == "moec":
        yield from (float(n) for name, n in node.kwargs.items() if name in _DIALECT and isinstance(n, int | float))


def _is_float(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _numbers(constants: Iterable[Constant]) -> Iterator[float]:
    for constant in constants:
        weight = constant.weight
        if weight is not None and weight.size_bytes <= SMALL * weight.dtype.itemsize and weight.dtype != torch.bool:
            yield from map(float, weight.load().reshape(-1).tolist())


def _roundings(value: float) -> set[float]:
    """A number as each precision has it."""
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    return {float(torch.tensor(value, dtype=torch.float64).to(dtype)) for dtype in dtypes}
