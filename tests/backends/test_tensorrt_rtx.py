"""The target `tensorrt-rtx` is the folder `tensorrt` with the other library."""

from __future__ import annotations

from moec import registry
from moec.backends.tensorrt.edition import RTX, TENSORRT


def test_both_targets_are_found_by_name() -> None:
    names = registry.names("backends")
    assert {"tensorrt", "tensorrt-rtx"} <= set(names)
    assert registry.find("backends", "tensorrt-rtx")().edition is RTX
    assert registry.find("backends", "tensorrt")().edition is TENSORRT
