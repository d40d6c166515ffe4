"""Devices by name."""

from __future__ import annotations

import pytest

from moec.errors import MoecError
from moec.planning.devices import devices, find_device


def test_names_are_read_as_people_write_them() -> None:
    assert find_device("RTX 4090") == find_device("rtx-4090") == devices()["rtx4090"]


def test_unknown_ones_have_neighbours() -> None:
    with pytest.raises(MoecError, match="M202") as refused:
        find_device("h20")
    assert "h200" in refused.value.fix


def test_a_narrow_width_is_computed_in_the_next_that_there_is() -> None:
    a100, h200 = devices()["a100"], devices()["h200"]
    assert a100.flops(8) == a100.flops(16) == 312e12
    assert h200.flops(8) == 2 * h200.flops(16) and h200.flops(4) == h200.flops(8)
    assert h200.flops(32) == h200.flops(16)  # float32 products of engines that ask for TF32; none is wider
