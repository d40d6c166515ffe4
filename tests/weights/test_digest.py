"""A hash of a tensor is of its numbers, dtype and shape, wherever and however it lies."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from moec.weights.digest import add_tensor


def digest(value: Tensor) -> str:
    found = hashlib.sha256()
    add_tensor(found, value)
    return found.hexdigest()


def test_equal_tensors_have_one_and_others_another() -> None:
    value = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    assert digest(value) == digest(value.clone()) == digest(value.t().contiguous().t())
    others = (value.reshape(3, 2), value.half(), value + 1, value.flatten())
    assert len({digest(value), *map(digest, others)}) == 5
    assert digest(torch.tensor(1.0)) != digest(torch.tensor([1.0]))
