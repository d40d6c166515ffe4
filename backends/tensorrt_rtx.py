"""TensorRT-RTX, the target `tensorrt-rtx`: it shares everything but the library with `tensorrt`."""

from moec.backends.tensorrt.backend import TensorrtRtx

__all__ = ["TensorrtRtx"]
