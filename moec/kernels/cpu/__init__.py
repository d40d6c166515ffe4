"""Kernels for CPUs: experts of a mixture as an operator of ONNX Runtime and of PyTorch, in a library of its own."""
