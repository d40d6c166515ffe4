"""The operators of two files are the same however their values are called, and a wire that goes elsewhere is seen."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

import moec
from moec.proof.checks.values import Values
from tests.spoiling import edit


def embedding(model: ir.Model) -> ir.Node:
    return next(n for n in model.graph if n.op_type == "Gather" and model.graph.inputs[0] in n.inputs)


def renamed(model: ir.Model) -> None:
    for n, node in enumerate(model.graph):
        if not any(out.is_graph_output() for out in node.outputs):
            node.outputs[0].name = f"renamed_{n}"


def rare_rule(model: ir.Model) -> None:
    """Another row for one token, with a number that the file holds already."""
    renamed(model)
    node = embedding(model)
    ids = model.graph.inputs[0]
    two = next(v for v in model.graph.initializers.values() if v.const_value.size == 1 and v.dtype == ir.DataType.INT64)
    same, other = ir.node("Equal", [ids, two]), ir.node("Add", [ids, two])
    picked = ir.node("Where", [same.outputs[0], other.outputs[0], ids])
    for k, new in enumerate((same, other, picked)):
        new.outputs[0].name = f"new_{k}"
    model.graph.insert_before(node, [same, other, picked])
    node.replace_input_with(list(node.inputs).index(ids), picked.outputs[0])


@pytest.mark.parametrize(("change", "ok"), [(renamed, True), (rare_rule, False)])
def test_names_make_no_difference_and_wires_do(change, ok, mixtral_engine: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    found = moec.verify(edit(mixtral_engine, tmp_path / "engine", change)).find(Values)
    assert found is not None and found.ok is ok, found.differences
    assert ok or "no such operator" in found.differences[0].what
