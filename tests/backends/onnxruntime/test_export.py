"""What stays whole for ONNX Runtime: blocks whose routing is its MoE operator's own."""

from __future__ import annotations

from moec.backends.onnxruntime.export import OPSET, to_onnx
from tests.moe_module import MoeModel, source_of


def test_native_blocks_stay_whole_and_nothing_of_this_machine_is_left() -> None:
    model = to_onnx(source_of(MoeModel()).capture())
    assert [n.op_type for n in model.graph if n.domain == "moec"] == ["Experts", "Moe"]
    assert model.opset_imports[""] == OPSET and not any(n.metadata_props for n in model.graph)
