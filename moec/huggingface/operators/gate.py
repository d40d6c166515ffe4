"""Which activation an experts module has, and in which order its gate and up rows lie: found by running it, not by its
name."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from moec.dialect import ACTIVATIONS, Activation

Order = Literal["gate_up", "interleaved", "up_gate"]

_NEURONS, _ROWS = 8, 48
_NAMES_OF_NUMBERS = re.compile("limit|clamp|clip|alpha|beta|softcap$")
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Gate:
    """What stands between an expert's two matrices.

    Attributes:
        activation: the function.
        order: how the rows of the first matrix lie: all gates then all ups (canonical), gate and up in turn, or ups
            first.
    """

    activation: Activation
    order: Order = "gate_up"


def gate_of(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The gate `[N, 2*I] -> [N, I]` whose first half goes through a function and multiplies the second."""

    def gate(x: Tensor) -> Tensor:
        first, up = x.chunk(2, dim=-1)
        return function(first) * up

    return gate


def identify(function: Callable[[Tensor], Tensor], gated: bool, owners: tuple[Any, ...]) -> Gate | None:
    """The gate that agrees best with `function` on random values that reach the clamps, or None when none agrees.

    Rules that agree equally are the same in floating point (gelu clamped at 7 before and after); the simpler one is
    taken.

    Args:
        function: `[N, 2*I] -> [N, I]` (`[N, I] -> [N, I]` when not gated), in float32.
        gated: whether there are gate and up halves.
        owners: objects (the module, its config) whose numeric attributes may be clamp limits or factors.
    """
    numbers = _numbers(owners)
    x = _probe(2 * _NEURONS if gated else _NEURONS, max(numbers))
    try:
        with torch.no_grad():
            wanted = function(x)
    except (RuntimeError, TypeError, AttributeError):
        return None
    errors = {gate: _error(gate, x, wanted) for gate in _candidates(gated, numbers)}
    best = min(errors, key=lambda gate: errors[gate])
    return best if errors[best] <= _TOLERANCE else None


def canonical(tensor: Tensor, order: Order, dim: int) -> Tensor:
    """The gate rows before the up rows, along `dim` of size 2*I."""
    half = tensor.shape[dim] // 2
    if order == "interleaved":
        pairs = tensor.reshape(*tensor.shape[:dim], half, 2, *tensor.shape[dim + 1 :])
        return pairs.transpose(dim, dim + 1).reshape(tensor.shape).contiguous()
    return torch.roll(tensor, half, dim) if order == "up_gate" else tensor


def stored(tensor: Tensor, order: Order, dim: int) -> Tensor:
    """The inverse of `canonical`."""
    half = tensor.shape[dim] // 2
    if order == "interleaved":
        pairs = tensor.reshape(*tensor.shape[:dim], 2, half, *tensor.shape[dim + 1 :])
        return pairs.transpose(dim, dim + 1).reshape(tensor.shape).contiguous()
    return torch.roll(tensor, half, dim) if order == "up_gate" else tensor


def _numbers(owners: tuple[Any, ...]) -> list[float]:
    """Positive numbers that the owners keep under a name that speaks of a limit or factor, and the two usual
    factors."""
    found = {1.0, 1.702}
    for owner in owners:
        for name, value in vars(owner).items():
            if (
                isinstance(value, (int, float))
                and not isinstance(value, bool)
                and _NAMES_OF_NUMBERS.search(name)
                and 0 < value < math.inf
            ):
                found.add(float(value))
    return sorted(found)


def _probe(width: int, reach: float) -> Tensor:
    """Rows of ordinary size, where activations differ, and rows well beyond every clamp."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(_ROWS, width, generator=generator)
    rows[: _ROWS // 2] *= 2.0
    rows[_ROWS // 2 :] *= 3.0 * reach
    return rows


def _candidates(gated: bool, numbers: list[float]) -> Iterator[Gate]:
    for rule in _rules(gated, numbers):
        for order in ("gate_up", "interleaved", "up_gate") if gated else ("gate_up",):
            yield Gate(rule, order)  # type: ignore[arg-type]  # the literals of Order


def _rules(gated: bool, numbers: list[float]) -> Iterator[Activation]:
    for name in ACTIVATIONS:
        for alpha in numbers if name == "silu" else [1.0]:
            plain = Activation(name, gated, alpha)
            yield plain
            for beta in (0.0, 1.0) if gated else ():
                if beta:
                    yield replace(plain, beta=beta)
                for limit in numbers:
                    yield replace(plain, beta=beta, limit=limit)
                    yield replace(plain, beta=beta, limit=limit, clamp_after=True)
    for cap, up_cap in itertools.product((0.0, *numbers), repeat=2) if gated else ():
        if cap or up_cap:
            yield Activation("silu", gated, cap=cap, up_cap=up_cap)


def _error(gate: Gate, x: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative for values above 1."""
    value = gate.activation(canonical(x, gate.order, 1) if gate.activation.gated else x)
    if value.shape != wanted.shape:
        return math.inf
    error = float(((value - wanted).abs() / wanted.abs().clamp(min=1.0)).max())
    return math.inf if math.isnan(error) else error
