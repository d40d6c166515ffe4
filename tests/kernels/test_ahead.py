"""Compiling ahead of time, by what a launch says; that all kernels do is in
`tests/kernels/device/test_grouped_gemm.py`."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from moec.dialect import Activation
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


def changed(sm: int, fixed: bool, isa: int) -> tuple[int, int, str]:
    """Pointers and numbers of the second product's entry, and the version of its PTX."""
    made = lambda *shape: torch.empty(*shape, dtype=torch.float16, device="meta")  # noqa: E731
    with recording(sm) as found:
        ids, weights = torch.empty(4, 2, dtype=torch.int64, device="meta"), torch.empty(4, 2, device="meta")
        launch.experts(made(4, 64), ids, weights, made(8, 96, 64), made(8, 64, 48), rule=Activation())
    (started,) = (x for x in found.launches if x.kernel.__name__ == "rows_out_kernel")
    tables = dict.fromkeys(("order", "offsets", "tile_expert"))
    built = compile_ahead(replace(started, arguments={**started.arguments, **tables}), sm, fixed, isa)
    entry = built.ptx[built.ptx.index(".entry") : built.ptx.index(")", built.ptx.index(".entry"))]
    return entry.count(".param .u64"), entry.count(".param .u32"), re.findall(r"\.version (\S+)", built.ptx)[0]


def test_what_is_absent_or_fixed_is_no_parameter(compiler: Interpret) -> None:
    """hidden, ids, w, result and Triton's two; tokens, tiles and the strides of w that are not 1."""
    pointers, numbers, newest = compiler(changed, 90, False, 0)
    assert (pointers, numbers) == (6, 5) and float(newest) > 8.0
    assert compiler(changed, 90, True, 80) == (6, 2, "8.0")


def test_constants_are_compiled_in(compiler: Interpret) -> None:
    assert compiler(aligned, 90).ptx != compiler(aligned, 90, 9).ptx


def test_the_table_knows_no_device_without_a_limit() -> None:
    assert {sm for sm, _, _ in table()} <= set(SHARED_LIMIT_BYTES)
