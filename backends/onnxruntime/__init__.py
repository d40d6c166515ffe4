"""ONNX Runtime: export, lowering of the dialect, engine.

The class is loaded when it is first used: who asks what a target's text may say does not wait for torch.
"""

from __future__ import annotations

from typing import Any

from moec.backends.onnxruntime.options import DEVICES, OPTIONS

__all__ = ["DEVICES", "OPTIONS", "Onnxruntime"]


def __getattr__(name: str) -> Any:
    if name == "Onnxruntime":
        from moec.backends.onnxruntime.backend import Onnxruntime

        return Onnxruntime
    raise AttributeError(f"module 'moec.backends.onnxruntime' has no attribute {name!r}")
