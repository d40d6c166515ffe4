"""Packed weights lie in their file as the dialect defines them, and become constants of a real network."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from moec.backends.tensorrt.edition import RTX
from moec.backends.tensorrt.plugins.packed_file import FILE, constants, write
from moec.errors import MoecError
from moec.weights.lazy import from_tensor
from moec.weights.weight import PackedWeight
from tests.backends.tensorrt.tiny import needs_rtx


def weight(bits: int = 4, dtype: torch.dtype = torch.float16, depth: int = 64, zero: bool = False) -> PackedWeight:
    g = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 256, (3, 10, depth * bits // 8), dtype=torch.uint8, generator=g)
    scale = torch.randn(3, 10, max(depth // 32, 1), generator=g).to(dtype)
    zeros = from_tensor(torch.zeros(scale.shape, dtype=torch.uint8), "z") if zero else None
    return PackedWeight(from_tensor(codes, "w"), from_tensor(scale, "s"), zeros, bits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_is_written_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    first, second = weight(4, dtype), weight(8, dtype)
    records = write(tmp_path, [{"w_in": first, "w_out": second}, {}, {"w_in": second}])
    assert [list(r) for r in records] == [["w_in", "s_in", "w_out", "s_out"], [], ["w_in", "s_in"]]
    assert (
        records[0]["w_in"]["shape"] == [3, 10, 8]
        and records[0]["w_out"]["shape"] == [3, 10, 16]
        and records[0]["s_in"]["shape"] == [3, 10, 2]
    )
    data = (tmp_path / FILE).read_bytes()
    for record, tensor in (
        (records[0]["w_in"], first.packed.load()),
        (records[0]["s_out"], second.scale.load()),
        (records[2]["w_in"], second.packed.load()),
    ):
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        assert record["offset"] % 256 == 0 and data[record["offset"] : record["offset"] + len(raw)] == raw


def test_nothing_packed_is_no_file(tmp_path: Path) -> None:
    assert write(tmp_path, [{}, {}]) == [{}, {}] and not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    "wrong",
    [weight(zero=True), weight(depth=4), PackedWeight(weight().scale, weight().scale, None, 8)],
    ids=["zeros", "odd", "floats"],
)
def test_what_the_kernels_do_not_read(tmp_path: Path, wrong: PackedWeight) -> None:
    with pytest.raises(MoecError, match="packed integers without zero points") as caught:
        write(tmp_path, [{"w_in": wrong}])
    assert caught.value.code == "M208"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="cannot be written") as caught:
        write(tmp_path / "nowhere", [{"w_in": weight()}])
    assert caught.value.code == "M210"


@needs_rtx
def test_a_real_network_takes_them(tmp_path: Path) -> None:
    (records,) = write(tmp_path, [{"w_in": weight()}])
    trt = RTX.load()
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    tensors, arrays = constants(trt, network, records, tmp_path)
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        "w_in": ((3, 10, 8), trt.int32),
        "s_in": ((3, 10, 2), trt.float16),
    }
    codes = (
        np.asarray(network.get_layer(0).weights, dtype=np.int32)
        if hasattr(network.get_layer(0), "weights")
        else arrays[0].view(np.int32)
    )
    assert len(arrays) == 2 and codes.size == math.prod(records["w_in"]["shape"])
    assert arrays[0].tobytes() == weight().packed.load().numpy().tobytes()


def test_a_library_that_takes_none(tmp_path: Path) -> None:
    (records,) = write(tmp_path, [{"w_in": weight()}])
    library: Any = SimpleNamespace(int32="int32", float16="float16", Weights=lambda *_: None)
    network: Any = SimpleNamespace(add_constant=lambda *_: None)
    with pytest.raises(MoecError, match="no constant of int32"):
        constants(library, network, records, tmp_path)
