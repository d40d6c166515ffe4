"""A network's hidden values, and those of its gate alone."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from moec.dialect import Activation
from moec.experts.dense_network import Dense


def test_hidden_values_and_gates() -> None:
    w, b, x = torch.randn(8, 3), torch.randn(8), torch.randn(5, 3)
    gated = Dense(w, b, torch.randn(3, 4), Activation("silu"))
    gate, up = (x @ w.T + b).chunk(2, -1)
    assert torch.allclose(gated.hidden(x), F.silu(gate) * up, atol=1e-5)
    assert torch.allclose(gated.gates(x), F.silu(gate), atol=1e-5)
    assert not torch.allclose(gated.gates(x), F.silu(up), atol=1e-2)
    plain = Dense(w, None, torch.randn(3, 8), Activation("relu", gated=False))
    assert torch.allclose(plain.hidden(x), F.relu(x @ w.T), atol=1e-5) and torch.equal(plain.gates(x), plain.hidden(x))
