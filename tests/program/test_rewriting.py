"""A new node knows its value's shape, and where it comes from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moec.frontend.export import capture
from moec.program.rewriting import call_like


def test_value_and_provenance() -> None:
    program = capture(nn.Linear(4, 6), {"input": torch.randn(3, 4)}, {"input": ("rows", None)})
    (old,) = program.nodes(torch.ops.aten.linear.default)
    with program.graph.inserting_before(old):
        new = call_like(program, old, "test-pass", torch.ops.aten.linear.default, old.args[0], old.args[1])
        cast = call_like(program, old, "test-pass", torch.ops.aten.to.dtype, new, torch.float64)
    assert [str(d) for d in new.meta["val"].shape] == [str(d) for d in old.meta["val"].shape]
    assert cast.meta["val"].dtype == torch.float64 and new.meta["moec_pass"] == "test-pass"
    assert new.meta["nn_module_stack"] == old.meta["nn_module_stack"]


def test_a_call_that_does_not_fit_fails_at_once() -> None:
    program = capture(nn.Linear(4, 6), {"input": torch.randn(3, 4)}, {"input": ("rows", None)})
    (old,) = program.nodes(torch.ops.aten.linear.default)
    with program.graph.inserting_before(old), pytest.raises(RuntimeError):
        call_like(program, old, "test-pass", torch.ops.aten.linear.default, old, old.args[1])
