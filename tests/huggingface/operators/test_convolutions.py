"""Short convolutions are replaced where a window is known, and only by what computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.lfm2 import modeling_lfm2

from moec.errors import MoecError
from moec.huggingface.operators.convolutions import PARTS, use_moec_convolutions
from tests.zoo import build


def test_a_window_and_new_tokens_become_the_operator_and_what_is_one_text_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, calls = build("lfm2"), list[Tensor]()
    module: Any = model.model.layers[0].conv  # type: ignore[union-attr, index]
    x = torch.randn(2, 5, 32)
    want = module(x)
    assert use_moec_convolutions(model) == 1 and torch.allclose(module(x), want, atol=1e-6)
    own = modeling_lfm2.causal_conv1d_fn

    class Cache:
        def get_conv_state(self, *_: Any, **__: Any) -> None:
            return None

        def update_conv_state(self, new: Tensor, *_: Any, **__: Any) -> Tensor:
            whole = torch.cat([torch.zeros(2, 32, 3), new], -1)
            setattr(whole, PARTS, (whole[..., :3], new))
            return whole

    monkeypatch.setattr(modeling_lfm2, "causal_conv1d_fn", lambda *given, **_: calls.append(given[0]))
    assert torch.allclose(module(x, past_key_values=Cache()), want, atol=1e-5) and not calls
    monkeypatch.undo()
    assert modeling_lfm2.causal_conv1d_fn is own


def test_a_function_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(
        hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
    ) -> Tensor:
        return modeling_convolution(hidden_states, weight.flip(-1), bias, activation)

    modeling_convolution = modeling_lfm2.causal_conv1d_fn
    monkeypatch.setattr(modeling_lfm2, "causal_conv1d_fn", other)
    with pytest.raises(MoecError, match="computes something else") as caught:
        use_moec_convolutions(build("lfm2"))
    assert caught.value.code == "M206" and caught.value.where == "model.layers.0.conv"
