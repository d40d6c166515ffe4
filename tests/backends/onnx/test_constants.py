"""Everything of fixed value in an ONNX model, in memory and from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from moec.backends.onnx.constants import _weight, constants_of
from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.tensors import WeightTensor
from moec.backends.onnx.writing import write_model
from moec.backends.tensorrt.graph.quantized import Codes
from moec.proof.values import compare_file
from moec.weights.lazy import from_tensor


def model() -> ir.Model:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 4]))
    last = ir.node("Identity", [x], name="last")
    graph = ir.Graph([x], last.outputs, nodes=[last], opset_imports={"": 21}, name="main")
    emit = Emitter(graph, last)
    wide = emit.weight(from_tensor(torch.arange(4096.0).reshape(1024, 4), "wide"), "wide")
    codes = emit.weight(from_tensor(torch.arange(6, dtype=torch.uint8).reshape(2, 3), "codes"), "codes", Codes)
    then, other = emit.branch("then"), emit.branch("else")
    branches = (then, then("LeakyRelu", x, alpha=0.25)), (other, other("Add", x, emit.number(7.0, ir.DataType.FLOAT)))
    chosen = emit.choose(emit("Equal", emit("Size", x), emit("Size", wide)), *branches)
    emit("Cast", codes, to=1)
    emit.replace(emit("Gelu", chosen, approximate="tanh"))
    return ir.Model(graph, ir_version=10)


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    made = model()
    write_model(made, tmp_path / "model.onnx")
    due = {c.name: c for c in constants_of(made)}
    held = {c.name: c for c in constants_of(ir.load(tmp_path / "model.onnx"))}
    assert held.keys() == due.keys()
    for name, constant in due.items():
        other = held[name]
        assert (constant.form, constant.text) == (other.form, other.text), name
        if constant.weight is not None and other.weight is not None:
            assert torch.equal(constant.weight.load(), other.weight.load()), name


def test_numbers_in_branches_and_words_are_found() -> None:
    found = {c.name: c for c in constants_of(model())}
    alpha = next(c for name, c in found.items() if name.endswith(".alpha"))
    assert "then_branch/" in alpha.name and alpha.weight is not None and alpha.weight.load().item() == 0.25
    assert found["moec/float[]:7.0"].weight is not None
    assert any("approximate=tanh" in c.text for c in found.values())


def _unpacking(zero: int, opset: int = 21) -> ir.Model:
    """A model that unpacks a matrix in a function, as engines with 8 bits do."""
    made = model()
    codes, body = ir.Value(name="codes"), ir.Graph([], [], nodes=[], opset_imports={"": opset})
    middle = ir.node("Constant", [], {"value": ir.tensor(np.uint8(zero))})
    less = ir.node("Sub", [codes, middle.outputs[0]])
    for node, name in ((middle, "middle"), (less, "less")):
        node.outputs[0].name = name
        body.append(node)
    body.inputs.append(codes)
    body.outputs.append(less.outputs[0])
    function = ir.Function("moec", "Unpack8", graph=body, attributes=())
    made.functions[function.identifier()], made.opset_imports["moec"] = function, 1
    return made


def test_what_a_function_computes_is_compared(tmp_path: Path) -> None:
    write_model(_unpacking(128), tmp_path / "model.onnx")
    due = {c.name: c for c in constants_of(_unpacking(128))}
    assert list(compare_file({c.name: c for c in constants_of(ir.load(tmp_path / "model.onnx"))}, due)) == []
    for wrong in (_unpacking(127), _unpacking(128, opset=13), model()):
        found = list(compare_file({c.name: c for c in constants_of(wrong)}, due))
        assert found and any("Unpack8" in f.name or "Sub" in f.what for f in found)


def test_rows_are_read_apart(tmp_path: Path) -> None:
    write_model(model(), tmp_path / "model.onnx")
    held = {c.name: c for c in constants_of(ir.load(tmp_path / "model.onnx"))}
    wide = held["last.wide"].weight
    assert wide is not None and torch.equal(wide.read(1000, 1002), torch.arange(4000.0, 4008.0).reshape(2, 4))
    assert not held["last.wide"].lazy and isinstance(model().graph.initializers["last.wide"].const_value, WeightTensor)
    codes = held["last.codes"]
    assert codes.dtype == "INT4" and codes.shape == (2, 6) and codes.weight is not None
    assert np.array_equal(codes.weight.load().numpy(), np.arange(6).reshape(2, 3))


def test_a_tensor_of_no_elements_is_read() -> None:
    """numpy gives it a stride of 0, in which torch sees no other dtype."""
    for shape in ((0,), (2, 0)):
        assert _weight(ir.tensor(np.zeros(shape, np.int64)), "none").load().shape == shape
