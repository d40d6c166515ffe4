"""moec's own kernels inside a TensorRT engine."""
