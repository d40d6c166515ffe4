"""An expert's last matrix, fitted to what the stream lacks for the tokens that it gets."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moec.experts.merged_refit import Arriving, refitted_expert
from moec.recognition.ffn import Ffn, find_ffns
from tests import zoo

GENERATOR = torch.Generator().manual_seed(0)
WRONG = 0.3 * torch.randn(32, 48, generator=GENERATOR)  # what is wrong with the last matrix


def network() -> Ffn:
    return find_ffns(zoo.captured("llama", cache=False))[0][0]


def arriving(ffn: Ffn, size: Tensor | float = 1.0, sign: float = 1.0) -> Arriving:
    """1,600 tokens that are to be answered as another last matrix would, and noise, by which streams are larger."""
    x = torch.randn(1600, ffn.hidden, generator=torch.Generator().manual_seed(1))
    hidden = hidden_of(ffn, x)
    noise = size * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    wanted = hidden @ (ffn.w_out.load() + sign * WRONG).T + 0.1 * noise
    return Arriving(x, wanted + noise, wanted, torch.arange(1600) % 8 == 0)


def hidden_of(ffn: Ffn, x: Tensor) -> Tensor:
    gate, up = (x @ ffn.w_in.load().T).chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def test_it_goes_towards_what_is_wanted_and_no_further_than_helps() -> None:
    ffn = network()
    own = arriving(ffn)
    matrix, step = refitted_expert(ffn, own)
    change = matrix - ffn.w_out.load()
    assert step.taken == 1.0 and step.left < 0.8 * step.before
    assert 0.1 < float((change * WRONG).sum() / WRONG.square().sum()) < 1.0
    nothing = replace(own, wanted=hidden_of(ffn, own.x) @ ffn.w_out.load().T)
    same, still = refitted_expert(ffn, nothing)
    assert torch.allclose(same, ffn.w_out.load(), atol=1e-5) and still.before < 1e-9
    other = arriving(ffn, sign=-1.0)  # the tokens that judge say the contrary of those that are fitted to
    mixed = replace(own, wanted=torch.where(own.judges[:, None], other.wanted, own.wanted))
    kept, none = refitted_expert(ffn, mixed)
    assert none.taken == 0.0 and torch.equal(kept, ffn.w_out.load())


def test_tokens_with_large_streams_count_less() -> None:
    ffn = network()
    size = torch.where(torch.arange(1600) % 2 == 0, 1.0, 100.0)[:, None]  # half of the tokens is noise
    own = arriving(ffn, size)
    matrix, _ = refitted_expert(ffn, own)
    flat, _ = refitted_expert(ffn, replace(own, streams=torch.ones_like(own.streams)))
    lost = [float((m - ffn.w_out.load() - WRONG).square().sum()) for m in (matrix, flat)]
    assert lost[0] < 0.9 * lost[1]


def test_an_expert_that_gets_no_token_stays() -> None:
    ffn = network()
    own = arriving(ffn)
    for chosen in (torch.zeros(1600, dtype=torch.bool), own.judges, ~own.judges):
        matrix, step = refitted_expert(ffn, own.of(chosen))
        assert torch.equal(matrix, ffn.w_out.load()) and step.taken == 0.0


def test_a_token_of_no_size_decides_nothing() -> None:
    ffn = network()
    own = arriving(ffn)
    silent = torch.arange(1600) % 100 == 1
    holed = replace(own, streams=own.streams.masked_fill(silent[:, None], 0.0))
    wrong, right = (refitted_expert(ffn, each)[0] - ffn.w_out.load() for each in (holed, own))
    assert float((wrong - right).norm()) < 0.5 * float(right.norm())
