"""`moec::linear_attention` against the sums that its papers write, and what each option means."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

B, S, G, H, D, V = 2, 9, 2, 4, 6, 5


def given(seed: int = 0, by_channel: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    decay = -make(*(B, S, H, D) if by_channel else (B, S, H)).abs()
    tensors = make(B, S, G, D), make(B, S, G, D), make(B, S, H, V), make(B, H, D, V)
    return {
        **dict(zip(("query", "key", "value", "state"), tensors, strict=True)),
        "decay": decay,
        "rate": make(B, S, H).sigmoid(),
    }


def call(scale: float = 0.3, epsilon: float = 1e-6, **tensors: Any) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = torch.ops.moec.linear_attention(**tensors, scale=scale, epsilon=epsilon)
    return result


def cut(tensors: dict[str, Tensor], first: int, last: int) -> dict[str, Tensor]:
    return {name: t if name == "state" else t[:, first:last] for name, t in tensors.items()}


def test_with_a_decay_it_is_attention_without_softmax() -> None:
    t = given()
    query, key = (t[n].repeat_interleave(H // G, 2) for n in ("query", "key"))
    total = t["decay"].cumsum(1)
    weight = (total[:, :, None] - total[:, None]).masked_fill(~torch.ones(S, S).tril().bool()[..., None], -torch.inf)
    scores = torch.einsum("bthd,bshd->btsh", query, key) * weight.exp() * 0.3
    before = torch.einsum("bthd,bhdv->bthv", query, t["state"]) * total.exp()[..., None] * 0.3
    want = torch.einsum("btsh,bshv->bthv", scores, t["value"]) + before
    got, _ = call(**{**t, "rate": None}, epsilon=0.0)
    assert torch.allclose(got, want, atol=1e-5)
    for wrong in ({"decay": None}, {"state": t["state"] * 0}, {"rate": t["rate"]}):
        assert not torch.allclose(call(**{**t, "rate": None, **wrong}, epsilon=0.0)[0], want, atol=1e-2)


def test_the_delta_rule_writes_over_what_a_key_had() -> None:
    t = given()
    key = torch.eye(D)[[0, 1, 0, 2, 1, 0, 3, 3, 4]].expand(B, S, D)[:, :, None].repeat(1, 1, G, 1)
    got, state = call(query=key, key=key, value=t["value"], state=t["state"], rate=torch.ones(B, S, H), scale=1.0)
    assert torch.allclose(got, t["value"], atol=1e-4), "each token reads what it wrote"
    last = {0: 5, 1: 4, 2: 3, 3: 7, 4: 8}
    for channel, place in last.items():
        assert torch.allclose(state[:, :, channel], t["value"][:, place], atol=1e-4)
    assert torch.allclose(state[:, :, 5], t["state"][:, :, 5]), "no key had it"
    added, _ = call(query=key, key=key, value=t["value"], state=t["state"], scale=1.0)
    assert not torch.allclose(added, t["value"], atol=1e-1), "without a rate values add up"


def test_a_decay_for_each_channel() -> None:
    t, channels = given(), given(by_channel=True)
    same = t["decay"][..., None].expand(B, S, H, D)
    assert all(torch.allclose(a, b) for a, b in zip(call(**t), call(**{**t, "decay": same}), strict=True))
    once = cut(channels, 0, 1)
    _, state = call(**{**once, "value": once["value"] * 0, "rate": None})
    assert torch.allclose(state, channels["state"] * channels["decay"][:, 0].exp()[..., None])


def test_queries_and_keys_are_brought_to_one_length() -> None:
    t = given()
    longer = {**t, "query": t["query"] * 3, "key": t["key"] * 5}
    assert torch.allclose(call(**t)[0], call(**longer)[0], atol=1e-4)
    assert not torch.allclose(call(**t, epsilon=0.0)[0], call(**longer, epsilon=0.0)[0], atol=1e-2)
    assert call(**{**t, "key": t["key"] * 0})[0].isfinite().all(), "padding has no key"


@pytest.mark.parametrize("by_channel", [False, True])
def test_a_text_in_pieces_is_the_text_in_one_go(by_channel: bool) -> None:
    t = given(by_channel=by_channel)
    want, end = call(**t)
    for places in ([0, 1, S], [0, 4, 4, 5, S], list(range(S + 1))):
        state, pieces = t["state"], []
        for first, last in pairwise(places):
            piece, state = call(**{**cut(t, first, last), "state": state})
            pieces.append(piece)
        assert torch.allclose(torch.cat(pieces, 1), want, atol=1e-6) and torch.allclose(state, end, atol=1e-6)
    assert not torch.allclose(call(**cut(t, 4, S))[0], want[:, 4:], atol=1e-2), "the state matters"


def test_half_precision_computes_in_float32() -> None:
    half = {n: x.half() if n in ("query", "key", "value") else x for n, x in given().items()}
    want, end = call(**{n: x.float() for n, x in half.items()})
    got, state = call(**half)
    assert got.dtype == torch.float16 and torch.equal(got, want.half())
    assert state.dtype == torch.float32 and torch.equal(state, end)


@pytest.mark.parametrize("absent", [(), ("decay",), ("rate",)])
def test_it_has_derivatives(absent: tuple[str, ...]) -> None:
    inputs = [None if n in absent else t.double().requires_grad_() for n, t in cut(given(), 0, 2).items()]
    function = lambda *x: torch.ops.moec.linear_attention(*x, scale=0.3, epsilon=1e-6)  # noqa: E731
    assert torch.autograd.gradcheck(function, tuple(inputs), fast_mode=True)


def test_it_is_registered_as_torch_wants_it() -> None:
    inputs = tuple(t.requires_grad_() for t in cut(given(by_channel=True), 0, 2).values())
    what = ("test_schema", "test_autograd_registration", "test_faketensor")
    checked = torch.library.opcheck(torch.ops.moec.linear_attention, inputs, {"scale": 0.3}, test_utils=what)
    assert set(checked.values()) == {"SUCCESS"}
