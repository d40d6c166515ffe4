"""`moec::causal_conv` against sums written out, and torch's own gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect import causal_conv_reference

B, C, S, K = 2, 3, 5, 4


def drawn(window: int = K - 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (B, C, S), (B, C, window), (C, K), (C,)
    x, before, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, before, weight, bias


@pytest.mark.parametrize("window", [K - 1, K, K + 2])
def test_each_token_is_summed_with_those_before_it(window: int) -> None:
    x, before, weight, bias = drawn(window)
    whole = torch.cat([before, x], -1)
    want = torch.stack([(whole[..., window + t - K + 1 : window + t + 1] * weight).sum(-1) for t in range(S)], -1)
    got = torch.ops.moec.causal_conv(x, before, weight)
    assert torch.allclose(got, want, atol=1e-5)
    assert torch.allclose(
        torch.ops.moec.causal_conv(x, before, weight, bias, silu=True), F.silu(want + bias[:, None]), atol=1e-5
    )
    assert not torch.allclose(torch.ops.moec.causal_conv(x, before * 0, weight), want, atol=1e-2), "the window is read"


def test_in_pieces_it_says_the_same() -> None:
    x, before, weight, bias = drawn()
    whole, found = torch.ops.moec.causal_conv(x, before, weight, bias), []
    for end in (1, 4, 5):
        new = x[..., sum(f.shape[-1] for f in found) : end]
        found.append(torch.ops.moec.causal_conv(new, before, weight, bias))
        before = torch.cat([before, new], -1)[..., -K + 1 :]
    assert torch.allclose(torch.cat(found, -1), whole, atol=1e-6)


def test_it_exports_and_has_gradients() -> None:
    inputs = tuple(t.double().requires_grad_() for t in drawn())
    assert torch.autograd.gradcheck(lambda *t: torch.ops.moec.causal_conv(*t, silu=True), inputs)
    torch.library.opcheck(torch.ops.moec.causal_conv.default, drawn(), test_utils=("test_schema", "test_faketensor"))
    half = [t.half() for t in drawn()]
    assert causal_conv_reference(*half).dtype == torch.float16
