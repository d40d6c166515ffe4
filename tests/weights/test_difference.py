"""Two lazy tensors are equal bit for bit, or the first place that differs is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moec.weights.difference import fingerprint, first_difference
from moec.weights.lazy import Weight, concat, from_tensor, rows, transpose
from moec.weights.weight import BLOCK_BYTES


def weight(tensor: Tensor) -> Weight:
    return from_tensor(tensor, "w")


def changed(tensor: Tensor, at: tuple[int, ...], value: float) -> Weight:
    other = tensor.clone()
    other[at] = value
    return weight(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_the_first_place_is_named(dtype: torch.dtype) -> None:
    tensor = torch.arange(60).reshape(5, 4, 3).remainder(2).to(dtype)
    assert first_difference(weight(tensor), weight(tensor.clone())) is None
    found = first_difference(weight(tensor), changed(tensor, (3, 2, 1), 0 if tensor[3, 2, 1] else 1))
    assert found is not None and (found.row, found.index) == (3, (3, 2, 1))


def test_bits_count_and_not_numbers() -> None:
    nan = torch.tensor([1.0, float("nan")])
    assert first_difference(weight(nan), weight(nan.clone())) is None
    found = first_difference(weight(torch.tensor([0.0])), weight(torch.tensor([-0.0])))
    assert str(found) == "[0] is -0, not 0"
    one = torch.tensor(7.0)
    assert str(first_difference(weight(one), weight(one * (1 - 2**-20)))) == "it is 6.99999332, not 7"


def test_rows_of_later_blocks_are_read() -> None:
    tensor = torch.zeros(3, BLOCK_BYTES // 4)
    found = first_difference(weight(tensor), changed(tensor, (2, 5), 1.0))
    assert found is not None and found.index == (2, 5)


def test_other_forms_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="beside"):
        first_difference(weight(torch.zeros(2)), weight(torch.zeros(3)))


def test_the_order_of_elements_is_not_in_a_fingerprint() -> None:
    tensor = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    whole = fingerprint([weight(tensor)])
    assert whole == fingerprint([transpose(weight(tensor), 0, 1)])
    assert whole == fingerprint([rows(weight(tensor), 4, 6), rows(weight(tensor), 0, 4)])
    assert fingerprint([weight(tensor)] * 2) == fingerprint([concat([weight(tensor)] * 2, 1)])
    tensor[5, 4] *= 1 + 2**-20
    assert whole != fingerprint([weight(tensor)])
