"""Packed operands of QMoE: 2 bits beside 4 are one exact operator, and no expert gets another's numbers."""

from __future__ import annotations

import pytest
import torch

from moec.backends.onnxruntime.experts.lower import lower_experts
from moec.backends.onnxruntime.experts.operands import interleave
from moec.backends.onnxruntime.packed.quantized import lower_quantized
from moec.dialect import Routing
from moec.weights.lazy import from_tensor
from tests.backends.onnxruntime.blocks import Experts, error, moe_model, ops, run, tokens
from tests.backends.onnxruntime.experts.test_each_width import (
    LIMIT,
    MIXED,
    ROUNDED_LIMIT,
    THREE,
    built,
    experts,
    reference,
)
from tests.backends.onnxruntime.rounding import mix, quantize_model


@pytest.mark.parametrize(
    "routing", [Routing(2), Routing(2, combine="scores"), Routing(4)], ids=["softmax", "scores", "4 of 6"]
)
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_two_and_four_bits_are_one_exact_operator(block: int, zeros: bool, routing: Routing) -> None:
    e, x = experts(), tokens(9, hidden=128)
    plain = reference(e, x, routing)
    model, fact = built(e, routing, MIXED, block, zeros)
    assert (
        ops(model).count("QMoE") == 1
        and fact["bits"] == "2, 4"
        and fact["experts"] == {"2": 3, "4": 3}
        and "when loaded" in fact["why"]
    )
    got, want = run(model, x=x), reference(e, x, routing)
    assert error(got, want) < LIMIT
    assert error(got, plain) > 10 * LIMIT, "the weights were rounded"
    e.w_in = e.w_in[[1, 0, 2, 3, 4, 5]]
    assert error(got, reference(e, x, routing)) > 0.01, "experts in another order are seen"


@pytest.mark.parametrize("block", [16, 32, 128])
def test_experts_of_two_bits_alone_become_four_when_loaded(block: int) -> None:
    e, x = Experts(hidden=128, inner=128), tokens(9, hidden=128)
    model = moe_model(e, 2, Routing(2))
    for name, value in quantize_model(model, ["w_in", "w_out"], 2, block, True).items():
        setattr(e, name, value)
    (fact,) = lower_experts(model)
    lower_quantized(model)
    assert fact["kernel"] == "QMoE" and fact["bits"] == "2" and "2 bits become 4" in fact["why"]
    assert error(run(model, x=x), reference(e, x, Routing(2))) < LIMIT


def test_blocks_of_sixteen_never_meet_the_slow_kernel_of_two_bits() -> None:
    e, x = experts(), tokens(9, hidden=128)
    model, fact = built(e, Routing(2), MIXED, 16, rounded=True)
    assert ops(model).count("QMoE") == 1 and "2 bits become 4" in fact["why"]
    model, _ = built(experts(), Routing(2), THREE, 16, rounded=True)
    assert [n.attributes.get_int("expert_weight_bits") for n in model.graph if n.op_type == "QMoE"] == [4, 4, 8]
    want = experts()
    mix(moe_model(want, 2, Routing(2)), want, THREE, 16, False)
    assert error(run(model, x=x), reference(want, x, Routing(2))) < ROUNDED_LIMIT


def test_matrices_of_different_mixtures_are_one_operator_in_the_widest() -> None:
    for options in ({}, {"rounded": True}):
        e, x = experts(), tokens(9, hidden=128)
        model = moe_model(e, 2, Routing(2))
        mix(model, e, MIXED, 32, False, ("w_in",))
        mix(model, e, (2, 4, 2, 2, 4, 4), 32, False, ("w_out",))
        (fact,) = lower_experts(model, **options)
        lower_quantized(model)
        assert fact["formulation"] == "kernel" and fact["bits"] == "4"
        assert error(run(model, x=x), reference(e, x, Routing(2))) < LIMIT


def test_gate_and_up_rows_take_turns() -> None:
    rows = torch.arange(2 * 6 * 3.0).reshape(2, 6, 3)
    turned = interleave(from_tensor(rows, "w")).load()
    assert torch.equal(turned, rows[:, [0, 3, 1, 4, 2, 5]]) and not torch.equal(turned, rows)
