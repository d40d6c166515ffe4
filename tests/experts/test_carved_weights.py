"""The cut network's weights: the dense ones in another order, read lazily."""

from __future__ import annotations

from dataclasses import replace

import torch

from moec.dialect import Activation
from moec.experts.carved_refit import Output
from moec.experts.carved_router import Router
from moec.experts.carved_weights import carved_weights, placeholders
from moec.experts.carving import Carved, Carving, Errors
from moec.recognition.ffn import find_ffns
from tests import zoo

HOW = Carving(4, 0, 2, "rows", "ridge", True, True, 0)


def test_weights_are_the_dense_ones_expert_by_expert() -> None:
    ffn = find_ffns(zoo.captured("gpt2", cache=False))[0][0]  # biases, no gate
    groups = tuple(torch.randperm(ffn.intermediate, generator=torch.Generator().manual_seed(0)).view(4, -1))
    absent = torch.randn(4, ffn.hidden)
    output = Output(torch.empty(0), -absent, absent.sum(0))
    router = Router(torch.randn(4, ffn.hidden), torch.randn(4))
    carved = Carved(groups, 0, router, output, False, Errors(0, 0, 0, 1))
    made, forms = carved_weights(ffn, carved, "how"), placeholders(ffn, HOW)
    assert {n: (w.shape, w.dtype) for n, w in made.items()} == {n: (w.shape, w.dtype) for n, w in forms.items()}
    w_in, w_out, b_in, b_out = ffn.w_in.load(), ffn.w_out.load(), ffn.b_in.load(), ffn.b_out.load()  # type: ignore[union-attr]
    for e, group in enumerate(groups):
        assert torch.equal(made["experts.w_in"].load()[e], w_in[group])
        assert torch.equal(made["experts.w_in"].read(e, e + 1)[0], w_in[group])
        assert torch.equal(made["experts.w_out"].load()[e], w_out[:, group])
        assert torch.equal(made["experts.b_in"].load()[e], b_in[group])
    assert torch.allclose(made["experts.constant"].load(), b_out + absent.sum(0), atol=1e-6)
    assert torch.equal(made["experts.b_out"].load(), -absent)


def test_gate_and_up_rows_of_a_neuron_stay_together() -> None:
    ffn = find_ffns(zoo.captured("llama", cache=False))[0][0]
    groups = tuple(torch.arange(ffn.intermediate).flip(0).view(2, -1))
    output = Output(torch.randn(ffn.hidden, ffn.intermediate), torch.zeros(2, ffn.hidden), torch.zeros(ffn.hidden))
    router = Router(torch.zeros(2, ffn.hidden), torch.zeros(2), torch.ones(2, ffn.hidden), Activation())
    carved = Carved(groups, 0, router, output, True, Errors(0, 0, 0, 1))
    made = carved_weights(ffn, carved, "how")
    forms = placeholders(ffn, replace(HOW, experts=2, router="analytical"))
    assert {n: (w.shape, w.dtype) for n, w in made.items()} == {n: (w.shape, w.dtype) for n, w in forms.items()}
    assert torch.equal(made["experts.w_out"].load()[1], output.w_out[:, groups[1]])  # fitted anew
    w_in, rows = made["experts.w_in"].load(), ffn.w_in.load()
    half = ffn.intermediate // 2
    assert torch.equal(w_in[0, 0], rows[ffn.intermediate - 1])  # the last neuron's gate
    assert torch.equal(w_in[0, half], rows[2 * ffn.intermediate - 1])  # and its up row
