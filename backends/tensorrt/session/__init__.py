"""Run a TensorRT engine, or its graph on the CPU in its place."""
