"""Rounding as the hardware does it; matrix products are in `tests/kernels/test_launch.py`."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.conftest import Interpret
from tests.kernels.device.test_weights import decoded_as


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounds_to_the_nearest_and_ties_to_even(interpret: Interpret, dtype: torch.dtype) -> None:
    ties = 1 + torch.arange(64) * torch.finfo(dtype).eps / 2
    x = torch.cat(
        [
            torch.randn(186, generator=torch.Generator().manual_seed(0)),
            ties,
            torch.tensor([1.9999999, -1.9999999, 0.0, 3e38, float("inf"), float("nan")]),
        ]
    )
    got = interpret(decoded_as, "rounded", x, dtype)
    assert torch.equal(got.nan_to_num(7), x.to(dtype).nan_to_num(7)) and got.isnan().tolist() == x.isnan().tolist()
    assert not torch.equal(got.float().nan_to_num(7), x.nan_to_num(7))
