"""The ONNX graph that TensorRT's parser takes."""
