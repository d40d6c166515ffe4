"""Tensors that a model fills part by part, as concatenations, against the PyTorch functions that they came from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moec.backends.onnx.steps import apply_steps
from moec.backends.onnxruntime.export import to_onnx
from moec.backends.onnxruntime.optimization.optimize import optimization
from moec.frontend.export import capture
from tests.backends.onnxruntime.optimization.test_fusions import kinds, run
from tests.calls import Calls


def keys(x: Tensor) -> Tensor:
    whole = x.new_empty(x.shape[0], 4, x.shape[2], 8)
    whole[..., :5] = x[..., :5] * 2
    whole[..., 5:] = x[:, :1, :, 5:].expand(-1, 4, -1, -1)
    return whole + 1


def last_first(x: Tensor) -> Tensor:
    whole = x.new_empty(x.shape[0], 4, x.shape[2], 8)
    whole[..., 3:] = x[..., 3:] * 2
    whole[..., :3] = x[..., :3]
    return whole + 1


def overlapping(x: Tensor) -> Tensor:
    whole = x.new_empty(x.shape[0], 4, x.shape[2], 8)
    whole[..., :6] = x[..., :6] * 2
    whole[..., 4:] = x[..., 4:]
    return whole + 1


def half_full(x: Tensor) -> Tensor:
    whole = torch.zeros_like(x)
    whole[..., :6] = x[..., :6] * 2
    return whole + 1


@pytest.mark.parametrize(
    ("function", "joined"), [(keys, True), (last_first, True), (overlapping, False), (half_full, False)]
)
def test_the_numbers_stay_the_same(function: Callable[[Tensor], Tensor], joined: bool) -> None:
    dims = ("batch", None, "sequence", None)
    model = to_onnx(capture(Calls(function), {"x": torch.rand(3, 4, 5, 8)}, {"x": dims}))
    apply_steps(model, optimization())
    assert ("Concat" in kinds(model) and "ScatterND" not in kinds(model)) == joined
    for batch, sequence in ((1, 1), (2, 7)):
        x = torch.rand(batch, 4, sequence, 8)
        got = run(model, x)
        assert torch.equal(got, function(x)) and not torch.equal(got, function(1.01 * x))
