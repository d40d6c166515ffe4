"""Two programs have the same operators whatever their weights hold and however they are stored, and only then."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from moec.pipeline.pipeline import Pipeline
from moec.program.operators import operators
from moec.program.program import Program
from moec.weights import lazy
from tests.zoo import captured

aten = torch.ops.aten


def test_numbers_and_forms_of_weights_are_no_operators() -> None:
    plain = captured("llama", cache=False)
    packed, _ = Pipeline.parse("quantize(bits=8, group=16)").run(plain)
    assert packed.digest() != plain.digest() and operators(packed) == operators(plain)
    plain.weights = {name: lazy.scale(w, 0.5) if len(w.shape) > 1 else w for name, w in plain.weights.items()}
    assert operators(packed) == operators(plain)


def _number(program: Program) -> None:
    node = next(n for n in program.nodes(aten.add.Tensor) if isinstance(n.args[1], float))
    node.update_arg(1, 0.5)


def _wire(program: Program) -> None:
    node = program.nodes(aten.mul.Tensor)[-1]
    node.args = node.args[::-1]


def _weight(program: Program) -> None:
    first, second = program.nodes(aten.linear.default)[:2]
    assert isinstance(first.args[1], fx.Node)
    second.update_arg(1, first.args[1])


@pytest.mark.parametrize("change", [_number, _wire, _weight])
def test_what_is_computed_is(change: object) -> None:
    program = captured("llama", cache=False)
    before = operators(program)
    change(program)  # type: ignore[operator]
    assert operators(program) != before
