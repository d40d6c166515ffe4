"""TensorRT and TensorRT-RTX: one lowering, one builder, two libraries.

The classes are loaded when they are first used: the process that builds imports this package too, and must not wait for
torch.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Tensorrt", "TensorrtRtx"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from moec.backends.tensorrt import backend

        return getattr(backend, name)
    raise AttributeError(f"module 'moec.backends.tensorrt' has no attribute {name!r}")
