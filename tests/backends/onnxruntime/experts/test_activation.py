"""Activations in ONNX operators, far into their tails."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.emit import MICROSOFT, Emitter
from moec.backends.onnxruntime.experts.activation import emit_gated, emit_plain
from moec.dialect import Activation
from tests.backends.onnxruntime.blocks import ACTIVATIONS, run, value

ABSOLUTE = 5e-5  # the runtime's sigmoid is off by 6e-8 in the tail, times gate and up of 30
GRID = torch.linspace(-30, 30, 601)


def computed(rule: Activation, h: torch.Tensor) -> torch.Tensor:
    gate, up, y = (value(n, torch.float32, ["n"]) for n in ("gate", "up", "y"))
    place = ir.node("Place", [gate, up], outputs=[y], name="act")
    graph = ir.Graph([gate, up], [y], nodes=[place], opset_imports={"": 20, MICROSOFT: 1}, name="g")
    emit = Emitter(graph, place)
    result = (
        emit_gated(emit, rule, gate, up, ir.DataType.FLOAT)
        if rule.gated
        else emit_plain(emit, rule, gate, ir.DataType.FLOAT)
    )
    emit.replace(emit("Identity", result))
    parts = h.chunk(2) if rule.gated else (h, h)
    return run(ir.Model(graph, ir_version=10), gate=parts[0], up=parts[1])


@pytest.mark.parametrize("rule", ACTIVATIONS, ids=str)
def test_every_activation(rule: Activation) -> None:
    h = torch.cat([GRID, GRID.flip(0).roll(7)]) if rule.gated else GRID
    want = rule(h)
    got = computed(rule, h)
    assert torch.allclose(got, want, rtol=1e-5, atol=ABSOLUTE)
    others = [a for a in ACTIVATIONS if a != rule and a.gated == rule.gated]
    assert not any(torch.allclose(got, other(h), rtol=1e-5, atol=ABSOLUTE) for other in others)
