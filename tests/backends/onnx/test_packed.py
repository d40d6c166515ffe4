"""Packed weights read back from their nodes."""

from __future__ import annotations

import onnx_ir as ir
import torch

from moec.backends.onnx.packed import packed_zeros, read_quantized
from moec.backends.onnx.tensors import add_initializer
from moec.dialect import pack
from moec.weights.lazy import from_tensor, select
from moec.weights.weight import PackedWeight

CODES = torch.arange(2 * 3 * 32).reshape(2, 3, 32) % 16


def quantized() -> PackedWeight:
    zero = torch.arange(12, dtype=torch.uint8).reshape(2, 3, 2)
    return PackedWeight(
        from_tensor(pack(CODES, 4), "packed"), from_tensor(torch.ones(2, 3, 2), "scale"), from_tensor(zero, "zero"), 4
    )


def test_it_tells_the_weight_that_it_stands_for() -> None:
    weight = quantized()
    assert (weight.shape, weight.dtype, weight.group) == ((2, 3, 32), torch.float32, 16)
    assert weight.size_bytes == 2 * 3 * 16 + 2 * 3 * 2 * 4 + 2 * 3, "two zero points of 4 bits are one byte"
    assert weight.kind == "4 bits in blocks of 16, with zero points"
    assert weight.each(lambda part: select(part, 1)).shape == (3, 32)


def test_zero_points_fill_up_their_last_byte() -> None:
    zero = from_tensor(torch.tensor([[1, 2, 3]], dtype=torch.uint8), "zero")
    assert packed_zeros(zero, 4).load().tolist() == [[0x21, 0x03]]


def test_a_node_is_read_back_and_others_are_not() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20, "moec": 1})
    weight = quantized()
    assert weight.zero is not None
    inputs = [add_initializer(graph, w, w.origin) for w in (weight.packed, weight.scale, weight.zero)]
    found = read_quantized(ir.node("Dequantize", inputs, {"bits": 4}, domain="moec"))
    assert found is not None and found.zero is not None and found.bits == 4
    assert torch.equal(found.packed.load(), weight.packed.load()) and torch.equal(found.zero.load(), weight.zero.load())
    assert read_quantized(None) is None and read_quantized(ir.node("Relu", inputs[:1])) is None
