"""Folding: transposed weights stay lazy, whatever axes they swap."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.folding import folding
from moec.backends.onnx.steps import apply_steps
from moec.backends.onnx.tensors import WeightTensor, add_initializer
from moec.errors import MoecError
from moec.weights.lazy import Weight, from_tensor


def model(weight: Weight, perm: list[int]) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="fold")
    initializer = add_initializer(graph, weight, "w")
    node = ir.node("Transpose", [initializer], {"perm": perm})
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = (
        "t",
        initializer.type,
        ir.Shape([weight.shape[p] for p in perm]),
    )
    use = ir.node("Relu", [node.outputs[0]])
    use.outputs[0].name, use.outputs[0].type, use.outputs[0].shape = "y", initializer.type, node.outputs[0].shape
    graph.extend([node, use])
    graph.outputs.append(use.outputs[0])
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("perm", [[0, 2, 1], [1, 0, 2], [2, 1, 0]])
def test_a_swap_of_two_axes_is_a_lazy_weight(perm: list[int]) -> None:
    value = torch.randn(20, 17, 16)
    made = model(from_tensor(value, "w"), perm)
    apply_steps(made, folding())
    (initializer,) = made.graph.initializers.values()
    assert isinstance(initializer.const_value, WeightTensor) and torch.equal(
        initializer.const_value.weight.load(), value.permute(perm)
    )
    assert [n.op_type for n in made.graph] == ["Relu"]


def test_a_swap_reads_nothing() -> None:
    def refuse(start: int, stop: int) -> torch.Tensor:
        raise AssertionError("a weight was read")

    made = model(Weight((20, 17, 16), torch.float32, "w", refuse), [0, 2, 1])
    apply_steps(made, folding())
    assert [n.op_type for n in made.graph] == ["Relu"]


def test_batch_normalization_stays_an_operator_and_its_convolution_keeps_its_weight() -> None:
    kernel, ones = torch.randn(4, 3, 1, 1), torch.full((4,), 2.0)
    graph = ir.Graph([ir.Value(name="x", shape=ir.Shape([1, 3, 5, 5]), type=ir.TensorType(ir.DataType.FLOAT))], [],
                     nodes=[], opset_imports={"": 23}, name="normalized")  # fmt: skip
    conv = ir.node("Conv", [graph.inputs[0], add_initializer(graph, from_tensor(kernel, "w"), "w")])
    rest = [add_initializer(graph, from_tensor(ones, name), name) for name in ("scale", "bias", "mean", "var")]
    norm = ir.node("BatchNormalization", [conv.outputs[0], *rest])
    for node, name in ((conv, "c"), (norm, "y")):
        node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape([1, 4, 5, 5])
    graph.extend([conv, norm])
    graph.outputs.append(norm.outputs[0])
    made = ir.Model(graph, ir_version=10)
    apply_steps(made, folding())
    assert [n.op_type for n in made.graph] == ["Conv", "BatchNormalization"]
    assert torch.equal(torch.from_numpy(made.graph.initializers["w"].const_value.numpy()), kernel)  # type: ignore[union-attr]


def test_a_version_of_onnxscript_with_other_rules_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxscript.rewriter

    monkeypatch.setattr(onnxscript.rewriter, "_DEFAULT_REWRITE_RULES", onnxscript.rewriter._DEFAULT_REWRITE_RULES[:1])
    with pytest.raises(MoecError, match="rules for batch normalization elsewhere") as caught:
        apply_steps(model(from_tensor(torch.randn(3, 4), "w"), [1, 0]), folding())
    assert caught.value.code == "M301"
