"""Sizes with fractions come out of ONNX as Python has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from moec.backends.onnx.export import to_onnx
from moec.frontend.export import capture

ROWS = (1, 7, 60, 100, 129, 1000)
# in float32 each is another number at some of these
SIZES: dict[str, Callable[[Any], Any]] = {
    "floor": lambda n: math.floor(1.05 * n / 3),
    "ceil": lambda n: math.ceil(0.7 * n / 3 - 0.5) + 1,
    "max": lambda n: torch.sym_max(math.floor(n / 3 * 1.05), 4),
    "min": lambda n: math.floor(torch.sym_min(1.05 * n / 3, 300.5)),
}


class Sized(nn.Module):
    def __init__(self, size: Callable[[Any], Any]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x * self.size(x.shape[0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", SIZES)
def test_whole_numbers_of_fractions(name: str) -> None:
    size = SIZES[name]
    program = capture(Sized(size), {"x": torch.ones(9, 1)}, {"x": ("rows", None)})
    session = onnxruntime.InferenceSession(ir.to_proto(to_onnx(program, 20)).SerializeToString())
    for rows in ROWS:
        (found,) = session.run(None, {"x": torch.ones(rows, 1).numpy()})
        assert float(found[0, 0]) == size(rows)


def test_float32_would_be_another_number() -> None:
    single = [math.floor(torch.tensor(1.05) * n / 3) for n in ROWS]
    assert single != [SIZES["floor"](n) for n in ROWS]
