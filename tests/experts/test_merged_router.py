"""The router is the closed form that it says, tells texts apart where they differ, and knows how sure it is."""

from __future__ import annotations

import torch
from torch import Tensor

from moec.experts.merged_router import confusion, fit_router

WIDTH = 12
RIDGE = 1e-3  # of the mean squared activation


def text(label: int, tokens: int, apart: float, seed: int = 0) -> Tensor:
    """Tokens around a mean of their own, in a space that is stretched."""
    generator = torch.Generator().manual_seed(seed + label)
    mean = torch.zeros(WIDTH)
    mean[label], mean[-1 - label] = apart, apart / 3  # the noisy direction says little, and has the longer mean
    stretched = torch.linspace(0.2, 5, WIDTH).flip(0)
    return torch.randn(tokens, WIDTH, generator=generator) * stretched + mean + 1


def both(apart: float, tokens: int = 4000) -> tuple[list[Tensor], list[Tensor]]:
    return [text(k, tokens, apart) for k in range(3)], [text(k, 1000, apart, 50) for k in range(3)]


def test_it_tells_texts_apart_better_than_their_means_do() -> None:
    texts, held_out = both(6.0)
    found = fit_router(texts, held_out, RIDGE)
    means = torch.stack([x.mean(0) for x in texts])
    assert found.right > 0.9 > float(confusion(means, held_out).diagonal().mean())  # not whitened: mergekit's rows
    assert torch.allclose(found.confusion.sum(1), torch.ones(3).double())
    assert abs(fit_router(*both(0.0), RIDGE).right - 1 / 3) < 0.05  # by chance where there is nothing to tell


def test_its_softmax_is_a_probability() -> None:
    texts, held_out = both(1.5)
    weight = fit_router(texts, held_out, RIDGE).weight

    def loss(factor: float) -> float:
        logits = [(x @ weight.T * factor).log_softmax(-1)[:, k] for k, x in enumerate(held_out)]
        return -float(torch.cat(logits).mean())

    assert loss(1.0) < min(loss(0.8), loss(1.25))
    assert float(weight.sum(0).abs().max()) < 1e-4  # what all rows have in common moves no choice


def test_it_is_the_ridge_solution() -> None:
    texts, held_out = both(1.5)
    weight = fit_router(texts, held_out, ridge=1e-9).weight.double()
    x = torch.cat(texts).double()
    labels = torch.eye(3).double().repeat_interleave(len(texts[0]), 0)
    solved = torch.linalg.lstsq(x, labels).solution.T
    solved = solved - solved.mean(0)
    scale = float((weight * solved).sum() / solved.square().sum())
    assert scale > 0 and torch.allclose(weight, scale * solved, atol=1e-4 * float(weight.abs().max()))
