"""Engines check what they are given, and answer in kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.frontend.export import capture
from moec.program.program import Input


class Adds(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"sum": x + y.unsqueeze(-1)}


@pytest.fixture(scope="module")
def engine() -> EagerEngine:
    dynamic = {"x": ("batch", None), "y": ("batch",)}
    return EagerEngine(capture(Adds(), {"x": torch.randn(3, 4), "y": torch.randn(3)}, dynamic))


X, Y = torch.randn(5, 4), torch.randn(5)


def test_torch_in_torch_out_and_numpy_in_numpy_out(engine: EagerEngine) -> None:
    found = engine(x=X, y=Y)["sum"]
    assert isinstance(found, Tensor) and torch.equal(found, X + Y.unsqueeze(-1))
    array = engine(y=Y.numpy(), x=X.numpy())["sum"]
    assert isinstance(array, np.ndarray) and np.array_equal(array, found.numpy())


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"x": X}, "y"),
        ({"x": X, "y": Y, "z": Y}, "z"),
        ({"x": X.double(), "y": Y}, "x"),
        ({"x": X.numpy().astype(np.float64), "y": Y.numpy()}, "x"),
        ({"x": X[:, :3], "y": Y}, "x"),
        ({"x": X[0], "y": Y}, "x"),
        ({"x": X, "y": Y[:4]}, "y"),
        ({"x": "text", "y": Y}, "x"),
    ],
    ids=["missing", "unknown", "dtype", "numpy dtype", "width", "dimensions", "unequal batch", "no tensor"],
)
def test_what_does_not_fit_is_refused_by_name(engine: EagerEngine, inputs: dict[str, Any], named: str) -> None:
    with pytest.raises(MoecError) as caught:
        engine(**inputs)
    assert caught.value.code == "M211"
    assert repr(named) in caught.value.what


def test_an_input_whose_name_is_nearly_right_is_answered_with_the_right_one() -> None:
    class Named(EagerEngine):
        def __init__(self) -> None:
            self.name, self.inputs = "named", (Input("input_ids", torch.int64, ("batch",)),)

    with pytest.raises(MoecError) as caught:
        Named().check({"inpt_ids": torch.zeros(2, dtype=torch.int64)})
    assert caught.value.fix == "did you mean input_ids?"


def test_results_need_no_gradient(engine: EagerEngine) -> None:
    assert not engine(x=X.clone().requires_grad_(), y=Y)["sum"].requires_grad
