"""The router's product in Triton's interpreter, in as many parts as there are."""

from __future__ import annotations

import pytest
import torch

from moec.kernels import launch
from tests.kernels.accuracy import distance
from tests.kernels.conftest import Interpret


@pytest.mark.parametrize(
    ("x_dtype", "w_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)],
    ids=str,
)
@pytest.mark.parametrize(("tokens", "experts", "hidden"), [(1, 8, 600), (17, 33, 40), (3, 1, 1100)])
def test_the_parts_sum_to_the_logits(
    interpret: Interpret, tokens: int, experts: int, hidden: int, x_dtype: torch.dtype, w_dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (
        torch.randn(tokens, hidden, generator=generator).to(x_dtype),
        torch.randn(experts, hidden, generator=generator).to(w_dtype),
    )
    parts = interpret(launch.router_parts, x, w)
    exact = x.double() @ w.double().T
    assert parts.shape[1:] == exact.shape and parts.dtype == torch.float32
    assert parts.shape[0] == min(8, -(-hidden // 128))
    assert (
        distance(parts.sum(0), exact)
        < 1e-6
        < distance(parts[0] * 1.001 if len(parts) == 1 else parts[1:].sum(0), exact)
    )
