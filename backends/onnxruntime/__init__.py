"""ONNX Runtime: export, lowering of the dialect, engine."""
