"""Activations in ONNX's own operators, far into their tails."""

from __future__ import annotations

from types import ModuleType

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx import activation
from moec.backends.onnx.emit import MICROSOFT, Emitter
from moec.dialect import Activation
from tests.backends.onnxruntime.blocks import ACTIVATIONS, ops, run, value

ABSOLUTE = 5e-5  # the runtime's sigmoid is off by 6e-8 in the tail, times gate and up of 30
GRID = torch.linspace(-30, 30, 601)


def emitted(rule: Activation, form: ModuleType, dtype: torch.dtype = torch.float32) -> ir.Model:
    """`y = activation(gate, up)`, as one of the modules named `activation` emits it."""
    gate, up, y = (value(n, dtype, ["n"]) for n in ("gate", "up", "y"))
    place = ir.node("Place", [gate, up], outputs=[y], name="act")
    graph = ir.Graph([gate, up], [y], nodes=[place], opset_imports={"": 20, MICROSOFT: 1}, name="g")
    emit, kind = Emitter(graph, place), gate.dtype
    result = form.emit_gated(emit, rule, gate, up, kind) if rule.gated else form.emit_plain(emit, rule, gate, kind)
    emit.replace(emit("Identity", result))
    return ir.Model(graph, ir_version=10)


def check_every_tail(rule: Activation, form: ModuleType) -> None:
    """The numbers of one activation, and of no other."""
    h = torch.cat([GRID, GRID.flip(0).roll(7)]) if rule.gated else GRID
    gate, up = h.chunk(2) if rule.gated else (h, h)
    got = run(emitted(rule, form), gate=gate, up=up)
    assert torch.allclose(got, rule(h), rtol=1e-5, atol=ABSOLUTE)
    others = [a for a in ACTIVATIONS if a != rule and a.gated == rule.gated]
    assert not any(torch.allclose(got, other(h), rtol=1e-5, atol=ABSOLUTE) for other in others)


@pytest.mark.parametrize("rule", ACTIVATIONS, ids=str)
def test_every_activation(rule: Activation) -> None:
    check_every_tail(rule, activation)
    assert {n.domain for n in emitted(rule, activation).graph} == {""}, "operators of the standard domain only"


def test_a_plain_silu_is_two_operators_and_a_steeper_one_three() -> None:
    assert ops(emitted(Activation("silu", gated=False), activation)) == ["Sigmoid", "Mul", "Identity"]
    steeper = Activation("silu", gated=False, alpha=1.702)
    assert ops(emitted(steeper, activation)) == ["Mul", "Sigmoid", "Mul", "Identity"]
