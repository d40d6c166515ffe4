"""Sessions of ONNX Runtime in tests have one thread, or as many as somebody says."""

from __future__ import annotations

import onnx_ir as ir
import onnxruntime as ort
import pytest


@pytest.mark.parametrize(("said", "has"), [(None, 1), (0, 1), (2, 2)])
def test_a_session_has_one_thread_or_those_that_are_said(said: int | None, has: int) -> None:
    x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Relu", [x])
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20})
    options = None
    if said is not None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = said
    content = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    assert session.get_session_options().intra_op_num_threads == has
