"""Run an engine in ONNX Runtime: the session, a continued text, the values inside."""
