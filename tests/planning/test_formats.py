"""Bytes of formats: equal to what real packed tensors take."""

from __future__ import annotations

import math

import pytest
import torch

from moec.errors import MoecError
from moec.planning.formats import FORMATS, find_format, stored_bytes
from moec.planning.shape import Tensor
from moec.quantization.grid import Grid
from moec.quantization.rounding import quantize_weight
from moec.weights.lazy import from_tensor


@pytest.mark.parametrize(("name", "bits"), [("int2", 2), ("int4", 4), ("int8", 8)])
def test_integers_take_what_quantize_stores(name: str, bits: int) -> None:
    weight = from_tensor(torch.randn(3, 40, 192), "w")
    parts = quantize_weight(weight, Grid(bits=bits, group=64))
    scales = math.prod(parts.scale.shape) * 2  # engines keep scales in 16 bits
    assert find_format(name).matrix_bytes((3, 40, 192)) == parts.packed.size_bytes + scales


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("bf16", (4, 6), 48),
        ("fp32", (4, 6), 96),
        ("fp8", (256, 128), 256 * 128 + 2 * 4),
        ("fp8", (130, 129), 130 * 129 + 4 * 4),  # tiles that are not full have a scale, too
        ("mxfp4", (2, 64), 2 * 32 + 2 * 2),
        ("nvfp4", (2, 32), 2 * 16 + 2 * 2 + 4),
        ("int4-g128-zero", (2, 256), 2 * 128 + 2 * 2 * 2 + 2),
        ("int4", (2, 65), 2 * 33 + 2 * 2 * 2),  # an odd row ends in half a byte, a last group is not full
    ],
)
def test_scales_and_zero_points_are_counted(name: str, shape: tuple[int, ...], expected: int) -> None:
    assert FORMATS[name].matrix_bytes(shape) == expected


def test_routers_norms_and_tables_stay_plain() -> None:
    tensors = [Tensor(p, (8, 64), p) for p in ("router", "input embedding", "attention")]  # type: ignore[arg-type]
    found = stored_bytes([*tensors, Tensor("b", (64,), "attention")], FORMATS["int4"])
    assert found == {"router": 1024, "input embedding": 1024, "attention": 8 * 32 + 8 * 2 + 128}


def test_an_unknown_format_has_neighbours() -> None:
    with pytest.raises(MoecError, match="M202") as refused:
        find_format("int5")
    assert "int4" in refused.value.fix
