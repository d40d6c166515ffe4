"""How far a kernel is from float64, beside the error of the same computation without it at the same dtype.

In 16 bits that is PyTorch's: rounding decides. In float32 the CPU's BLAS would decide; there it is the worst of eight
orders in which sums can be made term by term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moec.dialect import Activation
from moec.dialect.experts import dense_expert, experts_reference
from moec.kernels.packed import ExpertCodes

MARGIN = 2.0  # times the error of the same computation without the kernel
ORDERS = 8


@dataclass(frozen=True)
class Problem:
    """One call of `moec::experts`."""

    x: Tensor
    ids: Tensor
    weights: Tensor
    w_in: Tensor | ExpertCodes
    w_out: Tensor | ExpertCodes
    b_in: Tensor | None
    b_out: Tensor | None

    def tensors(self) -> tuple[Any, ...]:
        return self.x, self.ids, self.weights, self.w_in, self.w_out, self.b_in, self.b_out

    def reference(
        self,
        rule: Activation,
        dtype: torch.dtype,
        before: bool = False,
        order: int | None = None,
    ) -> Tensor:
        """The dialect's reference with everything in `dtype`; weights that are packed are unpacked first.

        With `order`, the seed of an order in which terms are summed, no BLAS takes part.
        """
        dense = [t.unpacked() if isinstance(t, ExpertCodes) else t for t in self.tensors()]
        x, ids, weights, w_in, w_out, b_in, b_out = (
            t if t is None or not t.is_floating_point() else t.to(dtype) for t in dense
        )
        weights = weights if dtype == torch.float64 else self.weights
        own = (w_in, w_out, b_in, b_out, rule)
        expert = dense_expert(*own) if order is None else term_by_term(*own, order)
        return experts_reference(x, ids, weights, expert, w_in.shape[0], before)


def problem(
    rule: Activation = Activation(),  # noqa: B008  # immutable
    tokens: int = 5,
    top_k: int = 2,
    experts: int = 6,
    hidden: int = 40,
    inner: int = 24,
    dtype: torch.dtype = torch.float32,
    biases: bool = False,
    seed: int = 0,
) -> Problem:
    """A random one. Values are such that every clamp of 1 is reached."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    wide = rule.rows_per_neuron * inner
    ids = draw(tokens, experts).topk(top_k).indices
    b_in, b_out = (draw(experts, wide).to(dtype), draw(experts, hidden).to(dtype)) if biases else (None, None)
    w_in, w_out = draw(experts, wide, hidden) / hidden**0.5, draw(experts, hidden, inner) / inner**0.5
    return Problem(
        draw(tokens, hidden).to(dtype),
        ids,
        draw(tokens, top_k).softmax(-1),
        w_in.to(dtype),
        w_out.to(dtype),
        b_in,
        b_out,
    )


def term_by_term(
    w_in: Tensor, w_out: Tensor, b_in: Tensor | None, b_out: Tensor | None, rule: Activation, order: int
) -> Callable[[int, Tensor], Tensor]:
    """`dense_expert` without a BLAS."""

    def product(rows: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        total = torch.zeros(len(rows), len(w), dtype=w.dtype)
        for k in torch.randperm(w.shape[1], generator=torch.Generator().manual_seed(order)).tolist():
            total = total + rows[:, k, None] * w[None, :, k]
        return total if bias is None else total + bias

    def expert(e: int, rows: Tensor) -> Tensor:
        hidden = rule(product(rows, w_in[e], None if b_in is None else b_in[e]))
        return product(hidden, w_out[e], None if b_out is None else b_out[e])

    return expert


def distance(got: Tensor, exact: Tensor) -> float:
    """Relative error in the 2-norm; infinite where a NaN or an infinity is."""
    value = float((got.double() - exact).norm() / exact.norm().clamp(min=1e-300))
    return value if value == value else float("inf")


def ratio(got: Tensor, given: Problem, rule: Activation, before: bool = False) -> float:
    """The kernel's error against float64 in units of the reference's at the same dtype.

    In float32 that is taken as 2**-23 at least: with a dozen numbers it may be less by chance.
    """
    exact = given.reference(rule, torch.float64, before)
    if given.x.dtype != torch.float32:
        return distance(got, exact) / distance(given.reference(rule, given.x.dtype, before), exact)
    plain = [distance(given.reference(rule, torch.float32, before, order), exact) for order in range(ORDERS)]
    return distance(got, exact) / max(*plain, 2.0**-23)
