"""Which experts the wrong tokens of a layer have in common."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from moec.execution.choices import choice
from moec.execution.trace import trace
from moec.program.moe_call import EXPERTS, MOE
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.program.signature import Sample
from moec.proof.compare import Tolerance


def chosen_experts(program: Program, sample: Sample, layer: str) -> Tensor | None:
    """The expert ids `[T, K]` of the MoE operator in a layer or around it, None without one."""
    found: list[Tensor] = []

    def watch(node: fx.Node, _value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = module_path(node)
        if node.target in (EXPERTS, MOE) and (f"{path}.".startswith(f"{layer}.") or f"{layer}.".startswith(f"{path}.")):
            found.append(choice(node, args, kwargs)[1])

    trace(program, sample, watch)
    return found[0] if len(found) == 1 else None


def wrong_tokens(want: Tensor, got: Tensor, tokens: int, tolerance: Tolerance) -> Tensor:
    """Which of the tokens `[T]` deviate by more than the tolerance: by their largest difference, or by the root mean
    square of a row, as it bounds."""
    error = got.double().reshape(tokens, -1) - want.double().reshape(tokens, -1)
    spread, row = want.double().std(correction=0), tolerance.row if math.isfinite(tolerance.row) else tolerance.rms
    right = error.abs().amax(-1) <= _times(tolerance.deviation, spread)
    return ~(right & (error.square().mean(-1).sqrt() <= _times(row, spread)))


def _times(bound: float, spread: Tensor) -> Tensor:
    return spread * bound if math.isfinite(bound) else torch.full_like(spread, math.inf)  # not NaN where it is 0


def blame(ids: Tensor, wrong: Tensor) -> tuple[int, ...]:
    """The fewest experts, found greedily, that every wrong token went to; among equals, those that had the fewest right
    tokens.

    Args:
        ids: `[T, K]`. wrong: bool `[T]`.
    """
    blamed: list[int] = []
    left = wrong.clone()
    while left.any():
        hits = torch.bincount(ids[left].flatten())
        right = torch.bincount(ids[~wrong].flatten(), minlength=len(hits))[: len(hits)]
        score = hits.double() - right.double() / (right.sum() + 1)
        blamed.append(int(score.argmax()))
        left &= ~(ids == blamed[-1]).any(-1)
    return tuple(sorted(blamed))
