"""Numbers unpacked in registers: every byte."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.kernels.conftest import Interpret


def decoded_as(name: str, given: Tensor, dtype: torch.dtype) -> Tensor:
    """`probes.decode`; runs where `interpret` says."""
    from tests.kernels.device.probes import decode

    return decode(name, given, dtype)


def test_every_fp8_number(interpret: Interpret) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    want = every.view(torch.float8_e4m3fn).float()
    got = interpret(decoded_as, "fp8", every, torch.float32)
    assert torch.equal(got.nan_to_num(999), want.nan_to_num(999)) and int(got.isnan().sum()) == 2
    assert not torch.equal(got.nan_to_num(999), every.view(torch.float8_e4m3fnuz).float().nan_to_num(999))


def test_every_integer(interpret: Interpret) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(interpret(decoded_as, "integer", every, torch.float32), every.float() - 100)
