"""Single functions over their whole range, relative to float64."""

from __future__ import annotations

import pytest
import torch

from moec.dialect import ACTIVATIONS
from tests.kernels.conftest import Interpret
from tests.kernels.device.test_weights import decoded_as


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_function(interpret: Interpret, name: str) -> None:
    x = torch.cat(
        [
            torch.linspace(-12, 12, 500),
            torch.tensor([0.0, 1e-6, -1e-6, 60.0, -60.0, 200.0, -200.0, float("nan")]),
            torch.linspace(-1, 1, 516),
        ]
    )
    got, exact = interpret(decoded_as, name, x, torch.float32).double(), ACTIVATIONS[name](x.double(), 1.0)
    assert got[507].isnan() and int(got.isnan().sum()) == 1
    # gelu is x times a difference of nearly equal numbers on the far left, here as in PyTorch
    unit = x.double() if "gelu" in name else exact
    error = ((got - exact).abs() / unit.abs().clamp(min=1e-30)).nan_to_num(0)
    other = ACTIVATIONS["relu" if name != "relu" else "silu"](x.double(), 1.0)
    wrong = ((other - exact).abs() / unit.abs().clamp(min=1e-30)).nan_to_num(0)
    limit = 1e-5 if name == "silu" or name == "sigmoid" else 5e-7  # exp of a large number
    assert float(error.max()) < limit < float(wrong.max())
