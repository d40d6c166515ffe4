"""What backends that speak ONNX share: export of a program, lazy initializers, emitting nodes. It is no target
itself."""
