"""Compiling ahead of time, by what a launch says; that all kernels do is in `tests/kernels/device/test_grouped_gemm.py`."""

from __future__ import annotations

import re

import pytest
import torch

from moec.kernels import launch
from moec.kernels.ahead import SHARED_LIMIT_BYTES, Compiled, compile_ahead
from moec.kernels.starting import recording
from moec.kernels.tiles import table
from tests.kernels.conftest import Interpret


def aligned(sm: int, experts: int = 8) -> Compiled:
    with recording(sm) as found:
        launch.align(torch.empty(40, 2, dtype=torch.int64, device="meta"), experts, 16)
    return compile_ahead(found.launches[0], sm)


@pytest.mark.parametrize("sm", [80, 90])
def test_a_kernel_and_what_it_needs(compiler: Interpret, sm: int) -> None:
    built = compiler(aligned, sm)
    assert built.name == "align_kernel" and re.search(rf"\.target sm_{sm}", built.ptx)
    assert 8 < built.registers < 128 and built.warps == 4 and built.scratch_bytes == 0
    # four pointers, two numbers, and the two pointers to scratch that Triton always adds and nothing uses
    entry = built.ptx[built.ptx.index(".entry") : built.ptx.index(")", built.ptx.index(".entry"))]
    assert entry.count(".param .u64") == 6 and entry.count(".param .u32") == 2


def test_constants_are_compiled_in(compiler: Interpret) -> None:
    assert compiler(aligned, 90).ptx != compiler(aligned, 90, 9).ptx


def test_the_table_knows_no_device_without_a_limit() -> None:
    assert {sm for sm, _, _ in table()} <= set(SHARED_LIMIT_BYTES)
