"""Build a TensorRT engine, in a process of its own."""
