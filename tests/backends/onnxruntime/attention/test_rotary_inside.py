"""Attention that rotates queries and keys itself: only where its tables are those of the places that the mask counts.
Its numbers are those of `test_compact`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import onnx
import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.cache_rows import COMPACT
from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.steps import apply_steps
from moec.backends.onnxruntime.attention.rotary_inside import OPERATOR, rotate_inside
from moec.backends.onnxruntime.attention.windows import compact_windows
from moec.backends.onnxruntime.export import to_onnx
from moec.backends.onnxruntime.lowering import steps_for
from moec.huggingface.source import HuggingFaceSource
from tests.backends.onnxruntime.attention.engines import CUDA, LIMIT, Made
from tests.cuda_stand_in.observe import observe
from tests.zoo import build

Make = Callable[[str], Made]


def attention(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == OPERATOR]


def test_one_product_goes_in_as_it_is(make: Make) -> None:
    model = ir.load(make("mistral").folder / "model.onnx")
    (node,) = attention(model)
    assert node.attributes.get_int("do_rotary") == 1 and node.inputs[1] is None and node.inputs[2] is None
    assert "RotaryEmbedding" not in {n.op_type for n in model.graph}


def test_narrow_heads_are_rotated_before(make: Make) -> None:
    nodes = attention(ir.load(make("gpt_oss").folder / "model.onnx"))
    assert nodes and not any(node.attributes.get_int("do_rotary", 0) for node in nodes), "the operator wants 16"


def test_wrong_tables_are_found(make: Make, tmp_path: Path) -> None:
    made = make("mistral")
    wrong = Path(copytree(made.folder, tmp_path / "wrong"))
    model = onnx.load(wrong / "model.onnx")
    for node in (node for node in model.graph.node if node.op_type == OPERATOR):
        node.input[7], node.input[8] = node.input[8], node.input[7]
    onnx.save(model, wrong / "model.onnx")
    assert made.worst((1, 3, 2), wrong) > 5 * LIMIT


@pytest.fixture(scope="module")
def before() -> ir.Model:
    """Llama as it is before the step."""
    program = HuggingFaceSource.from_model(build("llama", num_hidden_layers=1, head_dim=16)).capture(torch.float16)
    model = to_onnx(program)
    steps = steps_for(CUDA, windows=compact_windows(program, CUDA))
    apply_steps(model, [step for step in steps if step.name != "rotate-inside"])
    return model


def count_from_two(model: ir.Model) -> None:
    counted = next(n for n in model.graph if n.op_type == "CumSum" and not str(n.name).startswith("tokens_first"))
    (less,) = (node for node, _ in counted.outputs[0].uses())
    less.replace_input_with(1, Emitter(model.graph, less).constant(2))


def count_all(model: ir.Model) -> None:
    counted = next(n for n in model.graph if n.op_type == "CumSum" and not str(n.name).startswith("tokens_first"))
    counted.attributes["exclusive"] = ir.AttrInt64("exclusive", 1)


@pytest.mark.parametrize(("change", "layers"), [
    (lambda model: None, 1), (count_from_two, 0), (count_all, 0), (lambda model: model.metadata_props.pop(COMPACT), 0),
], ids=["as it is", "from two", "exclusive", "no compact cache"])  # fmt: skip
def test_places_have_to_be_those_of_the_cache(
    before: ir.Model, change: Callable[[ir.Model], object], layers: int
) -> None:
    model = before.clone()
    change(model)
    assert rotate_inside(model) == layers and rotate_inside(model) == 0


def test_kernels_on_cuda(make: Make) -> None:
    found = observe(make("mistral").folder, tokens=64)
    assert not found.error and not found.refused and not found.on_cuda["If"]
    assert found.prompt.attention == {"flash_fwd_kernel": 1} and found.step.attention == {"kernel_mha": 1}
    assert "UnpackRoPEAppend" in found.step.names() and "RotaryEmbeddingBSNH" not in found.step.names()
