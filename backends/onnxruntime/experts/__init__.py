"""Mixture-of-experts blocks for ONNX Runtime: grouped GEMM, or its MoE and QMoE operators."""
