"""`moec::attention` against PyTorch's own attention, and what each option means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect import attention_reference

B, N, G, S, T, D, V = 2, 6, 3, 4, 9, 8, 5


def tensors(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return make(B, N, S, D), make(B, G, T, D), make(B, G, T, V)


def causal() -> Tensor:
    return (torch.arange(T)[None] <= torch.arange(S)[:, None] + T - S).expand(B, 1, S, T)


def call(*args: Any, **rule: Any) -> Tensor:
    result: Tensor = torch.ops.moec.attention(*args, **{"scale": 0.3, **rule})
    return result


def test_it_is_scaled_dot_product_attention_over_grouped_heads() -> None:
    query, key, value = tensors()
    want = F.scaled_dot_product_attention(query, key, value, causal(), scale=0.3, enable_gqa=True).transpose(1, 2)
    assert torch.allclose(call(query, key, value, causal()), want, atol=1e-6)
    assert not torch.allclose(call(query, key, value), want, atol=1e-2), "the mask matters"
    assert not torch.allclose(call(query, key, value, causal(), scale=0.4), want, atol=1e-3), "the scale matters"


def test_an_added_mask_is_one_of_floats() -> None:
    query, key, value = tensors()
    added = torch.zeros(B, 1, S, T).masked_fill(~causal(), -1e9)
    assert torch.allclose(call(query, key, value, added), call(query, key, value, causal()), atol=1e-6)


def test_softcap_and_sinks_by_hand() -> None:
    query, key, value = tensors()
    sinks = torch.linspace(-1, 1, N)
    keys, values = (t.repeat_interleave(N // G, 1) for t in (key, value))
    scores = torch.tanh(query @ keys.mT * 0.3 / 2.0) * 2.0
    scores = scores.masked_fill(~causal(), -torch.inf)
    shares = scores.exp() / (scores.exp().sum(-1, keepdim=True) + sinks.exp().reshape(1, N, 1, 1))
    want = (shares @ values).transpose(1, 2)
    assert torch.allclose(call(query, key, value, causal(), sinks, softcap=2.0), want, atol=1e-6)
    assert not torch.allclose(call(query, key, value, causal(), softcap=2.0), want, atol=1e-2)


def test_a_mask_for_other_heads_is_no_graph() -> None:
    """A model whose own forward cannot run is refused by the capture, not found by the proof."""
    query, key, value = (t.to("meta") for t in tensors())
    assert call(query, key, value, causal().expand(B, N, S, T).to("meta")).shape == (B, S, N, V)
    for heads in (0, 2):
        with pytest.raises(ValueError, match=f"a mask for {heads} heads does not fit 6"):
            call(query, key, value, causal()[:, :1].expand(B, 1, S, T).repeat(1, heads, 1, 1).to("meta"))


def test_a_row_that_sees_nothing_stays_a_number() -> None:
    query, key, value = tensors()
    mask = causal().clone()
    mask[1, :, 0] = False
    assert call(query, key, value, mask).isfinite().all()


def test_half_precision_computes_scores_in_float32() -> None:
    query, key, value = (t.half() for t in tensors())
    want = call(query.float(), key.float(), value.float(), causal())
    got = call(query, key, value, causal())
    assert got.dtype == torch.float16 and torch.allclose(got.float(), want, atol=2e-3)


@pytest.mark.parametrize("sinks", [False, True])
def test_it_can_be_exported_and_trained(sinks: bool) -> None:
    query, key, value = (t.requires_grad_() for t in tensors())
    extra = torch.linspace(-1, 1, N).requires_grad_() if sinks else None
    inputs = (query, key, value, causal(), extra)
    assert set(
        torch.library.opcheck(torch.ops.moec.attention, inputs, {"scale": 0.3, "softcap": 2.0, "causal": True}).values()
    ) == {"SUCCESS"}
    wanted = [t for t in (query, key, value, extra) if t is not None]
    got = torch.autograd.grad(call(*inputs, softcap=2.0).square().sum(), wanted)
    want = torch.autograd.grad(attention_reference(query, key, value, causal(), extra, 0.3, 2.0).square().sum(), wanted)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, want, strict=True)) and all(
        g.abs().max() > 1e-3 for g in got
    )
