"""ONNX Runtime: export, lowering of the dialect, engine."""

from moec.backends.onnxruntime.backend import Onnxruntime

__all__ = ["Onnxruntime"]
