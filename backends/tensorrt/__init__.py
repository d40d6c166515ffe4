"""TensorRT and TensorRT-RTX: one lowering, one builder, two libraries.

The classes are loaded when they are first used: the process that builds imports this package too, and must not wait for
torch. Nor must who asks what a target's text may say.
"""

from __future__ import annotations

from typing import Any

from moec.backends.tensorrt.options import DEVICES, OPTIONS

__all__ = ["DEVICES", "OPTIONS", "Tensorrt", "TensorrtRtx"]


def __getattr__(name: str) -> Any:
    if name in ("Tensorrt", "TensorrtRtx"):
        from moec.backends.tensorrt.backend import Tensorrt, TensorrtRtx

        return Tensorrt if name == "Tensorrt" else TensorrtRtx
    raise AttributeError(f"module 'moec.backends.tensorrt' has no attribute {name!r}")
