"""Operators in the place of transformers' functions refuse what they know nothing of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moec.errors import MoecError
from moec.huggingface.operators import lightning, linear_attention, scans

MAMBA = [torch.ones(1, 3, 2), torch.ones(1, 3, 2), -torch.ones(3, 4), torch.ones(1, 4, 2), torch.ones(1, 4, 2)]
MAMBA2 = [
    torch.ones(1, 2, 3, 5),
    torch.ones(1, 2, 3),
    -torch.ones(3),
    torch.ones(1, 2, 1, 4),
    torch.ones(1, 2, 1, 4),
    8,
]
DELTA = [torch.ones(1, 2, 1, 4)] * 3 + [torch.zeros(1, 2, 1)] * 2
CALLS: dict[str, Callable[..., Any]] = {
    "mamba": lambda **more: scans._SelectiveScan(None, None)(*MAMBA, **more),
    "mamba2": lambda **more: scans._chunk_scan(None)(*MAMBA2, **more),
    "delta": lambda **more: linear_attention.recurrence(*DELTA, **more),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("odd", [torch.tensor([0, 2]), 0.5, 2, True, "relu"], ids=str)
def test_an_argument_that_may_change_the_result_is_refused(name: str, odd: Any) -> None:
    CALLS[name](seq_idx=None, other=False, position_ids=torch.arange(2), use_cache=True)
    with pytest.raises(MoecError, match="'seq_idx'") as caught:
        CALLS[name](seq_idx=odd)
    assert caught.value.code == "M206"


def test_the_gate_of_a_scan_in_chunks_is_refused() -> None:
    with pytest.raises(MoecError, match="'z'"):
        CALLS["mamba2"](z=MAMBA2[0])


def test_lightning_attention_refuses_too() -> None:
    with pytest.raises(MoecError, match="'seq_idx'"):
        lightning._forward(None, torch.ones(1, 2, 4), seq_idx=torch.tensor([0, 2]))
