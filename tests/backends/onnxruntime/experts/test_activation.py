"""Activations with the runtime's own operator for silu, far into their tails."""

from __future__ import annotations

import pytest
import torch

from moec.backends.onnxruntime.experts import activation
from moec.dialect import Activation
from tests.backends.onnx.test_activation import check_every_tail, emitted
from tests.backends.onnxruntime.blocks import ACTIVATIONS, ops


@pytest.mark.parametrize("rule", ACTIVATIONS, ids=str)
def test_every_activation(rule: Activation) -> None:
    check_every_tail(rule, activation)


def test_silu_is_one_operator_except_in_float64() -> None:
    silu = Activation("silu", gated=False, alpha=1.702)
    assert ops(emitted(silu, activation)) == ["QuickGelu", "Identity"]
    assert ops(emitted(silu, activation, torch.float64)) == ["Mul", "Sigmoid", "Mul", "Identity"]
