"""A router's rows fitted anew to the activations of a quantized model, so that tokens go to the experts that they went
to before.

EAC-MoE (arXiv 2508.01625, eq. 5) asks for the router that minimises the squared error of the logits of each token's
best K experts, K larger than the number that is chosen: the many experts far behind would only take the fit's
attention. Which experts those are is decided by the untouched model, so the loss is a sum over experts of ordinary
least squares, each over the tokens that have the expert among their best K, and is solved exactly: no learning rate, no
epochs, the same result every time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_SAME = 1e-5  # relative error of logits that is rounding and no more


def best_experts(logits: Tensor, top: int, chosen: Tensor | None = None) -> Tensor:
    """Which experts' logits count, for each token.

    Args:
        logits: `[T, E]`, the untouched model's. top: K; at most E are taken.
        chosen: bool `[T, E]`, experts that the token was given to. They count in any case: a correction bias or a limit
            to groups may choose one whose logit is not among the best.

    Returns:
        bool `[T, E]`.
    """
    best = torch.zeros(logits.shape, dtype=torch.bool).scatter_(
        -1, logits.topk(min(top, logits.shape[-1]), dim=-1).indices, True
    )
    return best if chosen is None else best | chosen


@dataclass(frozen=True)
class FitData:
    """Tokens to fit a router on, or held out to judge the fit.

    Attributes:
        x: `[T, H]`, what the router reads in the quantized model.
        wanted: `[T, E]`, the untouched model's logits for the same tokens.
        counts: bool `[T, E]`, see `best_experts`.
    """

    x: Tensor
    wanted: Tensor
    counts: Tensor

    def rows(self, floor: int) -> list[int]:
        """The experts that count for at least `floor` tokens."""
        return (self.counts.sum(0) >= floor).nonzero()[:, 0].tolist()

    def loss(self, weight: Tensor, bias: Tensor | None) -> float:
        """Mean squared error of the logits that count, for a router `[E, H]` and its bias `[E]`."""
        got = F.linear(self.x.double(), weight.double(), None if bias is None else bias.double())
        return float((got - self.wanted.double())[self.counts].square().mean())


def fit_rows(
    weight: Tensor, origin: Tensor, bias: Tensor | None, training: FitData, ridge: float, floor: int
) -> Tensor:
    """The router `[E, H]` in float64 whose logits are nearest to the wanted ones where these count.

    Args:
        weight: `[E, H]`, the router as it is; rows that count for fewer tokens than `floor` stay so.
        origin: `[E, H]`, the untouched model's router, to which fitted rows are drawn, so that fitting twice is fitting
            once.
        bias: `[E]` or None; it stays.
        ridge: how strongly, in units of the mean squared activation of the tokens that a row counts for.
    """
    new = weight.to(torch.float64, copy=True)
    for e in training.rows(floor):
        own, start = training.counts[:, e], origin[e].double()
        x = training.x[own].double()
        missing = training.wanted[own, e].double() - x @ start - (0.0 if bias is None else float(bias[e]))
        new[e] = start + _ridge(x, missing, ridge)
    return new


def _ridge(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """`argmin |x @ d - y|² + penalty |d|²`; by the smaller of its two normal matrices, which give the same. NaN in, NaN
    out."""
    penalty = (ridge * x.square().sum() / x.shape[1]).clamp(min=torch.finfo(x.dtype).tiny)
    wide = x.shape[0] < x.shape[1]
    gram = x @ x.T if wide else x.T @ x
    gram.diagonal().add_(penalty)
    solved = torch.linalg.solve_ex(gram, y if wide else x.T @ y).result
    return x.T @ solved if wide else solved


# ---------------------------------------------------------------------- judged on held-out tokens
@dataclass(frozen=True)
class Fit:
    """What came of fitting a router.

    Attributes:
        weight: the new router `[E, H]`, rounded as it will be stored; None where the old one stays.
        reason: why it stays, else empty.
        rows: experts whose row was fitted. tokens: for each expert, how many tokens of the training part it counts for.
        loss_before, loss_after: see `FitData.loss`, on the held-out tokens; equal where nothing was fitted.
    """

    weight: Tensor | None
    reason: str
    rows: int
    tokens: tuple[int, ...]
    loss_before: float
    loss_after: float


def fit_router(
    weight: Tensor,
    origin: Tensor,
    bias: Tensor | None,
    training: FitData,
    held_out: FitData,
    ridge: float,
    floor: int,
    rounded: Callable[[Tensor], Tensor],
) -> Fit:
    """Fit a router, and keep the fit only if it lowers the error on tokens that it has not seen.

    Args:
        weight, origin, bias, ridge, floor: see `fit_rows`.
        training: what the rows are fitted on. held_out: what decides whether the fit is used.
        rounded: a router as it comes back from being stored.
    """
    tokens, rows, before = (
        tuple(int(n) for n in training.counts.sum(0)),
        len(training.rows(floor)),
        held_out.loss(weight, bias),
    )
    if not rows:
        reason = (
            f"no expert is among the best of {floor} tokens of the calibration text, the commonest of {max(tokens)}"
        )
        return Fit(None, reason, 0, tokens, before, before)
    if before <= _SAME**2 * float(held_out.wanted[held_out.counts].double().square().mean()):
        return Fit(None, "its logits are the untouched model's", 0, tokens, before, before)
    new = rounded(fit_rows(weight, origin, bias, training, ridge, floor))
    after = held_out.loss(new, bias)
    if after < before:
        return Fit(new, "", rows, tokens, before, after)
    return Fit(
        None,
        f"a fit does not lower its error on the text held back: {before:.3g} before, {after:.3g} after",
        rows,
        tokens,
        before,
        after,
    )
