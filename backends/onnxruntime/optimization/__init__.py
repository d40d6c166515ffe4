"""Rewrites of the finished ONNX graph for ONNX Runtime."""
