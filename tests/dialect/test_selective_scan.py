"""`moec::selective_scan` against the sum that it stands for, in pieces, at padding, and its derivative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

B, S, D, N = 2, 7, 5, 3


def tensors(length: int = S, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(shape, generator=generator).to(dtype)  # noqa: E731
    return [make(B, length, D), make(B, length, D).exp(), -make(D, N).exp(), make(B, length, N), make(B, length, N),
            make(B, D, N)]  # fmt: skip


def by_hand(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Every token as the sum over those before it, in float64."""
    x, delta, a, b, c, state = (t.double() for t in (x, delta, a, b, c, state))
    ends, found = delta.cumsum(1), []
    for t in range(x.shape[1]):
        h = (ends[:, t, :, None] * a).exp() * state
        for s in range(t + 1):
            kept = ((ends[:, t] - ends[:, s])[..., None] * a).exp()
            h = h + kept * (delta[:, s] * x[:, s])[..., None] * b[:, s, None]
        found.append(h @ c[:, t, :, None])
    return torch.cat(found, -1).transpose(1, 2), h


@pytest.mark.parametrize("length", [1, S])
def test_it_is_the_decayed_sum_of_what_came_before(length: int) -> None:
    given = tensors(length)
    for found, want in zip(torch.ops.moec.selective_scan(*given), by_hand(*given), strict=True):
        assert torch.allclose(found.double(), want, atol=1e-5)
    wrong = torch.ops.moec.selective_scan(*given[:-1], torch.zeros(B, D, N))[0]
    assert not torch.allclose(wrong.double(), by_hand(*given)[0], atol=1e-2), "the state matters"


def test_pieces_say_what_one_go_says() -> None:
    *given, state = tensors()
    want, after, pieces = *torch.ops.moec.selective_scan(*given, state), []
    for cut in (slice(0, 4), slice(4, 4), slice(4, 5), slice(5, S)):
        y, state = torch.ops.moec.selective_scan(*(t if t.dim() == 2 else t[:, cut] for t in given), state)
        pieces.append(y)
    assert torch.allclose(torch.cat(pieces, 1), want, atol=1e-6) and torch.allclose(state, after, atol=1e-6)


def test_a_step_of_no_time_leaves_the_state_as_it_is() -> None:
    x, delta, *rest = tensors()
    delta[:, 3:] = 0
    cut = [t[:, :3] if t.dim() == 3 and t.shape[1] == S else t for t in (x, delta, *rest)]
    assert torch.equal(torch.ops.moec.selective_scan(x, delta, *rest)[1], torch.ops.moec.selective_scan(*cut)[1])


def test_half_precision_is_computed_in_float32() -> None:
    *given, state = tensors(dtype=torch.float16)
    y, after = torch.ops.moec.selective_scan(*given, state.float())
    want = torch.ops.moec.selective_scan(*(t.float() for t in (*given, state)))
    assert y.dtype == torch.float16 and after.dtype == torch.float32
    assert torch.equal(y, want[0].half()) and torch.equal(after, want[1])


def test_the_operator_is_sound_and_has_a_derivative() -> None:
    given = [t.double().requires_grad_() for t in tensors(3)]
    torch.library.opcheck(torch.ops.moec.selective_scan.default, given, test_utils=("test_schema", "test_faketensor"))
    assert torch.autograd.gradcheck(torch.ops.moec.selective_scan, given)
