"""The policy is obeyed, and what is to take the place of the standard operators is said to stand between which
tensors."""

from __future__ import annotations

import pytest
import torch

from moec.backends.tensorrt.graph.moe import lower_experts
from moec.backends.tensorrt.policy import BuildPlan
from moec.dialect import Activation
from moec.errors import MoecError
from tests.backends.onnxruntime.blocks import Experts, choice, error, experts_model, run, tokens
from tests.backends.onnxruntime.rounding import quantize_model
from tests.backends.tensorrt.graph.test_expert_layer import want


def test_the_policy_is_obeyed_and_refuses() -> None:
    model = experts_model(Experts(), 2, 2)
    (fact,) = lower_experts(model, BuildPlan("tensorrt-rtx", tokens=1))
    assert fact["formulation"] == "gathered" and "native" not in fact
    with pytest.raises(MoecError) as caught:
        lower_experts(experts_model(Experts(), 2, 2), BuildPlan(memory_bytes=1000))
    assert caught.value.code == "M208" and "GiB" in caught.value.what


def test_a_native_block_says_between_which_tensors_it_stands() -> None:
    model = experts_model(Experts(biases=True), 3, 2)
    (fact,) = lower_experts(model, BuildPlan("tensorrt", architectures=(100,), tokens=8, length=1))
    assert fact["formulation"] == "native"
    native = fact["native"]
    assert (native["x"], native["ids"], native["weights"], native["y"]) == ("x", "ids", "weights", "y")
    assert set(native["weights_of"]) == {"gate", "up", "down", "gate.bias", "up.bias", "down.bias"}
    assert set(native["weights_of"].values()) <= set(model.graph.initializers)


@pytest.mark.parametrize(
    "activation", [Activation("silu", alpha=1.702, beta=1.0, limit=0.7), Activation("relu2", gated=False)], ids=str
)
@pytest.mark.parametrize(("tokens_", "form"), [(1, "gathered"), (40, "dense")])
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_a_block_with_kernels_is_proven_by_standard_operators(
    tokens_: int, form: str, activation: Activation, before: bool
) -> None:
    """Gate and up are one matrix there, which the kernels read too; the mutant has them swapped, or neurons where there
    is no gate."""
    e, x, (ids, weights) = Experts(activation=activation, biases=True), tokens(3, 5), choice(3, 5)
    model = experts_model(e, 3, 2, score_before=before)
    (fact,) = lower_experts(model, BuildPlan("tensorrt", architectures=(90,), tokens=tokens_, lowering="kernels"))
    found = fact["kernels"]
    assert (fact["formulation"], fact["form"]) == ("kernels", "gathered" if before else form), (
        "the same expert twice would be wrong in the other"
    )
    assert (
        found["weights_of"] == {name: f"layer.{name}" for name in ("w_in", "w_out", "b_in", "b_out")}
        and found["sm"] == 90
    )
    assert set(found["weights_of"].values()) <= set(model.graph.initializers) and found["sizes"]["turned"] == (
        fact["form"] == "dense"
    )
    got = run(model, x=x, ids=ids, weights=weights)
    assert error(got, want(e, x, ids, weights, before)) < 1e-4
    e.w_in = e.w_in.roll(e.inner if activation.gated else 1, 1)
    assert error(got, want(e, x, ids, weights, before)) > 0.1


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("tokens_", "form"), [(1, "dense"), (40, "dense")])
def test_packed_weights_for_kernels_are_the_dialects(tokens_: int, form: str, bits: int) -> None:
    """The standard operators prove the same numbers that the kernels are given, 2 bits as 4."""
    e, x, (ids, weights) = Experts(hidden=128, inner=64), tokens(9, hidden=128), choice(9)
    model = experts_model(e, 2, 2)
    model.graph.opset_imports[""] = 21
    meant = quantize_model(model, ["w_in", "w_out"], bits, 64, False)
    (fact,) = lower_experts(model, BuildPlan("tensorrt", architectures=(90,), tokens=tokens_, lowering="kernels"))
    found, wide = fact["kernels"], max(bits, 4)
    assert fact["form"] == form and found["weights_of"] == {} and not found["sizes"]["turned"]
    assert found["sizes"]["packed_in"] == found["sizes"]["packed_out"] == (wide, 64)
    for name, w in found["packed"].items():
        assert torch.equal(torch.ops.moec.dequantize(w.packed.load(), w.scale.load(), None, bits=wide), meant[name])
    e.w_in, e.w_out = meant["w_in"], meant["w_out"]
    got = run(model, x=x, ids=ids, weights=weights)
    assert error(got, want(e, x, ids, weights)) < 1e-4
    e.w_in = e.w_in.roll(e.inner, 1)
    assert error(got, want(e, x, ids, weights)) > 0.1
