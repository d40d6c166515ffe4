"""What travels arrives bit for bit."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from moec.workers.parcel import unwrap, wrap


@dataclass(frozen=True)
class Several:
    """Tensors within other things."""

    name: str
    parts: dict[str, list[Tensor | None]]


def there_and_back(value: Any) -> Any:
    return unwrap(pickle.loads(pickle.dumps(wrap(value), protocol=5)))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn]
)
def test_tensors_keep_their_bits(dtype: torch.dtype) -> None:
    values = torch.arange(24).reshape(4, 6).to(dtype)
    for given in (values, values.t(), values[1:3, ::2], values[0, 0], values[:0]):
        found = there_and_back(given)
        assert found.dtype == dtype and found.shape == given.shape and found.is_contiguous()
        assert found.numel() == 0 or torch.equal(found.float(), given.float())


def test_what_holds_tensors_stays_what_it_is() -> None:
    given = Several("x", {"a": [torch.tensor([math.nan, -0.0]), None], "b": []})
    found = there_and_back((given, 3, "text", math.sqrt))
    assert found[1:] == (3, "text", math.sqrt) and found[0].name == "x" and found[0].parts["b"] == []
    bits, none = found[0].parts["a"]
    assert none is None and torch.equal(bits.view(torch.int32), given.parts["a"][0].view(torch.int32))  # type: ignore[union-attr]


def test_the_arrays_lie_outside_of_the_pickle() -> None:
    """So that Ray lets workers read them where they are."""
    parcel = wrap(torch.zeros(1000))
    assert len(parcel.rest) < 200 and parcel.arrays[0].nbytes == 4000
