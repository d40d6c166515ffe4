"""Quantized weights in the form that ONNX Runtime's kernels read."""
