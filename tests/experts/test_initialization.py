"""Random weights that are read in part, twice, or in another order are the same weights."""

from __future__ import annotations

import pytest
import torch

from moec.experts.initialization import normal_rows, redraw
from moec.weights.lazy import from_tensor

W_IN, W_OUT = torch.randn(40, 8) * 3 + 1, torch.randn(8, 20) * 0.1 - 5


def test_rows_are_repeated_and_reproducible() -> None:
    router = normal_rows(4, 100, 3, 0.5, "seed", torch.float32)
    whole = router.load()
    assert whole.shape == router.shape == (12, 100)
    assert (
        torch.equal(whole[0::3], whole[1::3])
        and torch.equal(whole[0::3], whole[2::3])
        and not torch.equal(whole[0], whole[3])
    )
    assert torch.equal(torch.cat([router.read(0, 5), router.read(5, 12)]), whole)
    assert not torch.equal(normal_rows(4, 100, 3, 0.5, "other", torch.float32).load(), whole)
    assert whole.std().item() == pytest.approx(0.5, rel=0.1)


def test_redraw_takes_the_same_neurons_everywhere_and_keeps_their_statistics() -> None:
    new_in, new_out = redraw(from_tensor(W_IN, "in"), from_tensor(W_OUT, "out"), 2, 0.5, "seed")
    a, b = new_in.load(), new_out.load()
    changed = [(a != W_IN).all(1)[:20], (a != W_IN).all(1)[20:], (b != W_OUT).all(0)]
    assert changed[0].sum() == 10 and all(torch.equal(c, changed[0]) for c in changed)
    assert torch.equal(a[:20][~changed[0]], W_IN[:20][~changed[0]])
    assert b[:, changed[0]].mean().item() == pytest.approx(-5, abs=0.1) and b[
        :, changed[0]
    ].std().item() == pytest.approx(0.1, rel=0.4)
    assert torch.equal(torch.cat([new_in.read(0, 7), new_in.read(7, 40)]), a)
    assert not torch.equal(redraw(from_tensor(W_IN, "in"), from_tensor(W_OUT, "out"), 2, 0.5, "other")[0].load(), a)


def test_nothing_to_redraw() -> None:
    w_in, w_out = from_tensor(W_IN, "in"), from_tensor(W_OUT, "out")
    assert redraw(w_in, w_out, 2, 0.01, "seed") == (w_in, w_out)
