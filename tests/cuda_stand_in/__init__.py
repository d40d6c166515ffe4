"""A stand-in for the CUDA libraries: ONNX Runtime's real CUDA provider runs on it where there is no GPU.

The provider places nodes, constructs and prepacks kernels, and runs every check of its own; kernels are named and not
computed. So it shows where nodes go, what is launched, copied, held and refused, and nothing of numbers.
"""
