// libcuda without a GPU: the one function of the driver that ONNX Runtime's CUDA provider links to.
extern "C" int cuTensorMapEncodeTiled() { return 0; }
