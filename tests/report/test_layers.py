"""Facts about nodes name the layers that people know."""

from __future__ import annotations

from moec.program.provenance import module_path
from moec.report.layers import with_layers
from tests.moe_module import MoeModel, source_of


def test_a_row_about_a_node_names_its_layer() -> None:
    program = source_of(MoeModel()).capture()
    node = next(n for n in program.graph.nodes if "blocks.1" in str(n.meta.get("nn_module_stack")))
    rows = [{"node": f"node_{node.name}", "op": "Moe"}, {"node": "node_elsewhere"}]
    found = with_layers({"blocks": rows, "verified_by": "onnxruntime", "engine": {"bytes": 3}}, program)
    assert list(found["blocks"][0]) == ["layer", "node", "op"] and found["blocks"][0]["layer"].startswith("blocks.1")
    assert found["blocks"][1] == rows[1] and (found["verified_by"], found["engine"]) == ("onnxruntime", {"bytes": 3})


def test_a_row_about_a_weight_names_the_layer_that_has_it() -> None:
    program = source_of(MoeModel()).capture()
    first, second = (next(n for n in program.graph.nodes if b in module_path(n)) for b in ("blocks.0", "blocks.1"))
    row = {"node": f"node_{first.name}", "weight": f"{module_path(second)}.weight"}
    (found,) = with_layers({"packed": [row]}, program)["packed"]
    assert found["layer"] == module_path(second), "the node is counted anew"
    tied = with_layers({"packed": [row, row]}, program)["packed"]
    assert tied[0]["layer"] == module_path(first), "which of the layers that share it, the node knows"
