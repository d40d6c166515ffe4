"""A last matrix fitted anew: neurons that say the same stand in for each other, and nothing is made worse."""

from __future__ import annotations

import torch
from torch import Tensor

from moec.experts.carved_refit import Output, refitted

OWNER = torch.arange(4).repeat_interleave(2)


def output(whole: Tensor) -> Output:
    return Output(whole, torch.zeros(4, len(whole)), torch.zeros(len(whole)))


def test_neurons_that_say_the_same_stand_in_for_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    half, whole = torch.randn(600, 4, generator=generator), torch.randn(3, 8, generator=generator)
    hidden = torch.cat([half, half + 0.05 * torch.randn(600, 4, generator=generator)], 1)
    chosen = torch.tensor([True, True, False, False]).expand(600, -1)  # the second half is left out
    before = output(whole)
    after, _ = refitted(before, hidden[:400].split(150), chosen[:400], OWNER, whole)
    wanted = hidden[400:] @ whole.T
    lost = [float((o(hidden[400:], chosen[400:], OWNER) - wanted).square().sum()) for o in (before, after)]
    assert lost[1] < 0.05 * lost[0]
    assert torch.equal(before.w_out, whole)  # it is not written on


def test_means_are_found_where_nothing_else_is_to_be_seen() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, whole = torch.randn(4000, 8, generator=generator) + 1, torch.randn(3, 8, generator=generator)
    chosen = torch.rand(4000, 4, generator=generator) < 0.5
    after, _ = refitted(output(whole), [hidden], chosen, OWNER, whole)
    means = torch.stack([whole[:, e == OWNER].sum(1) for e in range(4)])  # every neuron's mean is 1
    assert torch.allclose(after.constant, means.sum(0), atol=0.6)
    wanted, found = hidden @ whole.T, after(hidden, chosen, OWNER)
    assert torch.allclose(found.mean(0), wanted.mean(0), atol=1e-3)


def test_silent_neurons_and_few_tokens_break_nothing() -> None:
    whole = torch.randn(3, 8)
    for hidden in (torch.zeros(5, 8), torch.randn(2, 8)):
        after, _ = refitted(output(whole), [hidden], torch.ones(len(hidden), 4, dtype=torch.bool), OWNER, whole)
        assert bool(after.w_out.isfinite().all()) and bool(after.constant.isfinite().all())
        assert torch.allclose(after.w_out, whole, atol=1e-5)  # nothing is missing
