"""Attention for ONNX Runtime: its operators, and the cache inside of them."""
