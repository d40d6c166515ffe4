"""What travels to a worker and back: a value's tensors as plain arrays, which Ray keeps outside of the pickle and lets
all workers of a machine read where they lie."""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BYTES = torch.uint8


@dataclass(frozen=True)
class Parcel:
    """A value in pieces.

    Attributes:
        rest: the pickled value, with a number in the place of each tensor.
        arrays: the tensors' bytes, one-dimensional. forms: shape and dtype of each.
    """

    rest: bytes
    arrays: list[np.ndarray[Any, Any]]
    forms: list[tuple[tuple[int, ...], torch.dtype]]


def wrap(value: Any) -> Parcel:
    """Functions go by their names: the other side must have the same moec."""
    stream, tensors = io.BytesIO(), list[Tensor]()
    pickler = _Pickler(stream, tensors)
    pickler.dump(value)
    plain = [tensor.detach().contiguous() for tensor in tensors]
    arrays = [tensor.reshape(-1).view(_BYTES).numpy() for tensor in plain]
    return Parcel(stream.getvalue(), arrays, [(tuple(tensor.shape), tensor.dtype) for tensor in plain])


def unwrap(parcel: Parcel) -> Any:
    """The value. Its tensors read the parcel's own memory, which nobody may write to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch says of such memory that writing is undefined
        found = [
            torch.from_numpy(array).view(dtype).reshape(shape)
            for array, (shape, dtype) in zip(parcel.arrays, parcel.forms, strict=True)
        ]
    return _Unpickler(io.BytesIO(parcel.rest), found).load()


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(stream, protocol=5)
        self._tensors = tensors

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        self._tensors.append(value)
        return len(self._tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(stream)
        self._tensors = tensors

    def persistent_load(self, number: Any) -> Tensor:
        return self._tensors[number]
