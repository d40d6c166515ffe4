"""TensorRT-RTX, the target `tensorrt-rtx`: it shares everything but the library with `tensorrt`."""

from __future__ import annotations

from typing import Any

from moec.backends.tensorrt.options import OPTIONS
from moec.backends.tensorrt.options import RTX_DEVICES as DEVICES

__all__ = ["DEVICES", "OPTIONS", "TensorrtRtx"]  # noqa: F822  # the class is loaded when it is first used


def __getattr__(name: str) -> Any:
    if name == "TensorrtRtx":
        from moec.backends.tensorrt.backend import TensorrtRtx

        return TensorrtRtx
    raise AttributeError(f"module 'moec.backends.tensorrt_rtx' has no attribute {name!r}")
