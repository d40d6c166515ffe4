"""Kernels for CPUs: experts of a mixture as an operator of ONNX Runtime, in a library of its own."""
