"""Which rules and activations the MoE operator has: exactly those that it computes."""

from __future__ import annotations

import itertools
import subprocess
import sys

from moec.backends.onnxruntime.experts.native_rule import is_native, kernel_activation
from moec.dialect import Activation, Routing
from tests.backends.onnxruntime.blocks import ACTIVATIONS

RULES = [
    Routing(k, score, combine, scale=scale)
    for k, score, combine, scale in itertools.product(
        (1, 2, 6), ("softmax", "sigmoid", "identity"), ("scores", "renormalize", "softmax", "ones"), (1.0, 2.5)
    )
]
NATIVE = [r for r in RULES if is_native(r, False, Activation(), False)]
KERNEL = [a for a in ACTIVATIONS if kernel_activation(a) is not None]


def test_which_rules_are_native() -> None:
    assert {(r.score, r.combine) for r in NATIVE} == {
        ("softmax", "scores"),
        ("softmax", "renormalize"),
        ("softmax", "softmax"),
        ("sigmoid", "softmax"),
        ("identity", "softmax"),
    }
    mixtral = Routing(2)
    assert not is_native(mixtral, True, Activation(), False)
    assert not is_native(mixtral, False, Activation(), True)
    assert not is_native(mixtral, False, Activation("gelu"), False)
    assert not is_native(Routing(2, groups=2), False, Activation(), False)
    assert not is_native(Routing(2, epsilon=1e-20), False, Activation(), False)
    assert not is_native(Routing(2, floor=1e-12), False, Activation(), False)


def test_which_activations_the_operator_has() -> None:
    assert {(a.name, a.gated) for a in KERNEL} == {
        ("silu", True),
        ("silu", False),
        ("relu", False),
        ("identity", False),
    }
    assert kernel_activation(Activation("silu", gated=False, alpha=1.702)) is None
    assert kernel_activation(Activation(limit=7.0, clamp_after=True)) is None


def test_predicate_needs_no_runtime() -> None:
    code = (
        "import sys, moec.backends.onnxruntime.experts.native_rule; assert not {'onnxruntime', 'onnx', 'onnx_ir'} "
        "& set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
