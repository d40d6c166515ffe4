"""Lazy weights as tensors: their bytes come block by block, and no name is given twice."""

from __future__ import annotations

import io

import numpy as np
import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.tensors import DTYPES, WeightTensor, add_initializer, weight_of
from moec.weights.lazy import Weight, from_tensor

VALUE = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


def counted(rows: list[int]) -> Weight:
    """A weight that notes how many rows are read at once."""

    def read(start: int, stop: int) -> torch.Tensor:
        rows.append(stop - start)
        return VALUE[start:stop]

    return Weight(tuple(VALUE.shape), VALUE.dtype, "w", read)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.is_floating_point], ids=str)
def test_bytes_are_the_weights_own(dtype: torch.dtype) -> None:
    value, file = VALUE.to(dtype), io.BytesIO()
    tensor = WeightTensor(from_tensor(value, "w"), "w")
    tensor.tofile(file)
    assert file.getvalue() == tensor.tobytes() == value.view(torch.uint8).numpy().tobytes()
    assert tensor.nbytes == value.nbytes and tensor.dtype == DTYPES[dtype]


def test_nothing_is_read_before_it_is_asked_for_and_nothing_is_kept() -> None:
    rows: list[int] = []
    tensor = WeightTensor(counted(rows), "w")
    assert (tensor.shape, tensor.name, rows) == (ir.Shape([40, 6]), "w", [])
    first = tensor.tobytes()
    assert sum(rows) == 40
    assert tensor.tobytes() == first and sum(rows) == 80, "it is read again"


def test_weights_of_initializers_constants_and_computed_values() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="g")
    weight = from_tensor(VALUE, "w")
    assert weight_of(add_initializer(graph, weight, "w")) is weight
    constant = ir.Value(name="c", const_value=ir.tensor(np.arange(3), name="c"))
    found = weight_of(constant)
    assert found is not None and found.load().tolist() == [0, 1, 2]
    assert weight_of(ir.node("Relu", [constant]).outputs[0]) is None and weight_of(None) is None


def test_names_are_free_ones() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="g")
    names = [add_initializer(graph, from_tensor(VALUE, "w"), "w").name for _ in range(3)]
    assert names == ["w", "w_1", "w_2"] == list(graph.initializers)
