"""A cache that is a buffer gives what one that grows gives: with padding, in chunks, on both sides of a window, to the
last place; a wrong length is seen, and what cannot be rewritten is left as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.attention import attention_nodes
from moec.backends.tensorrt.building.worker import call
from moec.backends.tensorrt.fixed_signature import LENGTH
from moec.backends.tensorrt.fixed_signature import buffers as fixed_inputs
from moec.backends.tensorrt.graph.fixed_cache import can_be_fixed, fix_cache, why_growing
from moec.backends.tensorrt.profiles import profiles
from moec.program.conditions import Condition
from moec.program.decoder_signature import IDS, MASK, PAST
from moec.program.signature import Input
from tests.backends.tensorrt.decoder import CAPACITY, graph, lowered_as, opaque, program, ran, text, whole
from tests.backends.tensorrt.tiny import needs_rtx, request


def buffers(batch: int) -> dict[str, np.ndarray]:
    """Buffers that another text has left."""
    specs = [i for i in ran(CAPACITY).get_inputs() if i.name not in (IDS, MASK, LENGTH)]
    return {i.name: np.full((batch, *i.shape[1:]), 5.0, np.float32) for i in specs}


def in_parts(given: dict[str, np.ndarray], parts: list[int], view: int, wrong: int = 0) -> np.ndarray:
    """Logits of texts that come in parts, the cache in buffers of which each call looks at `view` places."""
    caches, logits, at = buffers(len(given[IDS])), [], 0
    for new in parts:
        mask = np.ones((len(given[IDS]), view), np.int64)  # free places say that they hold tokens
        mask[:, : at + new] = given[MASK][:, : at + new]
        feeds = {IDS: given[IDS][:, at : at + new], MASK: mask, LENGTH: np.array([at + wrong]), **caches}
        names = [o.name for o in ran(CAPACITY).get_outputs()]
        found = dict(zip(names, ran(CAPACITY).run(names, feeds), strict=True))
        for name, before in caches.items():
            after = found[name.replace("past_key_values", "present")]
            assert (after == before).all(axis=(0, 1, 3)).sum() == CAPACITY - new, "other places stay as they are"
            caches[name] = after
        logits.append(found["logits"])
        at += new
    return np.concatenate(logits, 1)


def off(got: np.ndarray, want: np.ndarray, mask: np.ndarray) -> float:
    return float(np.abs(got - want)[mask.astype(bool)].max())


@pytest.mark.parametrize(
    ("parts", "view"),
    [([6], 6), ([6], 24), ([4, 1, 1], 8), ([1] * 6, 6), ([5, 1, 7, 1], 16), ([20, 1, 1, 1, 1], 24)],
    ids=["a prompt", "much room", "a prompt and steps", "steps alone", "chunks", "to the last place"],
)
def test_it_is_the_cache_that_grows(parts: list[int], view: int) -> None:
    given = text(0, 2, sum(parts), padding=2)
    want = whole(given)
    assert off(in_parts(given, parts, view), want, given[MASK]) < 1e-4
    if len(parts) > 1 and sum(parts) < view:
        assert off(in_parts(given, parts, view, wrong=1), want, given[MASK]) > 1e-2


def test_the_graph_writes_in_place_and_says_so() -> None:
    model, facts = graph(CAPACITY), lowered_as(CAPACITY)[1]
    assert facts["cache"][0]["cache"] == "fixed" and facts["cache"][0]["capacity"] == CAPACITY
    kinds = [n.op_type for n in model.graph]
    assert kinds.count("TensorScatter") == 4 and model.opset_imports[""] == 24
    shapes = {v.name: v.shape.numpy() if v.shape.is_static() else list(v.shape) for v in model.graph.inputs if v.shape}
    assert all(shapes[name][2] == CAPACITY for name in shapes if name.startswith("past"))
    joined = [
        n for n in model.graph if n.op_type == "Concat" and any(str(v.name).startswith("past") for v in n.inputs if v)
    ]
    assert not joined, "no cache is copied"


@pytest.mark.parametrize(("counted", "axis"), [("past_key_values.0.key", 2), (MASK, 1)])
def test_what_counts_places_keeps_its_growing_cache(counted: str, axis: int) -> None:
    """As Llama 4, which scales queries by how many places there are before them, padding included."""
    model, found = opaque(), program()
    (node, *_) = attention_nodes(model.graph)
    given = next(v for v in model.graph.inputs if v.name == counted)
    count = ir.node("Shape", [given], {"start": axis, "end": axis + 1})
    number = ir.node("Cast", [count.outputs[0]], {"to": int(ir.DataType.FLOAT)})
    scaled = ir.node("Mul", [node.inputs[0], number.outputs[0]])
    model.graph.insert_before(node, [count, number, scaled])
    node.replace_input_with(0, scaled.outputs[0])
    (fact,) = fix_cache(model, found.inputs, found.conditions, CAPACITY)
    assert fact["cache"] == "growing" and fact["capacity"] == 0 and "how long the past is" in fact["why"]
    kinds, names = {n.op_type for n in model.graph}, {v.name for v in model.graph.inputs}
    assert "TensorScatter" not in kinds and LENGTH not in names
    assert fix_cache(opaque(), found.inputs, found.conditions, CAPACITY)[0]["cache"] == "fixed"


def test_signatures_that_are_no_decoders() -> None:
    inputs = (Input(IDS, torch.int64, ("batch", "sequence")),)
    assert "no decoder" in why_growing(inputs, ()) and fix_cache(opaque(), inputs, (), CAPACITY) == []
    decoder = program().inputs
    assert why_growing(decoder, (Condition("batch <= 4"),)) == ""
    assert f"{PAST} <= 9" in why_growing(decoder, (Condition(f"{PAST} <= 9"),))
    window = Input("past_key_values.0.conv_state", torch.float32, ("batch", 4, 3))
    assert "conv_state is no cache that tokens are appended to" in why_growing((*decoder, window), ())


def test_a_cache_that_is_read_before_it_is_continued() -> None:
    model, found = opaque(), program()
    first = next(v for v in model.graph.inputs if str(v.name).startswith("past"))
    model.graph.insert_before(model.graph[0], ir.node("Neg", [first]))
    assert "otherwise than to be continued" in fix_cache(model, found.inputs, (), CAPACITY)[0]["why"]


def test_only_where_the_parser_knows_it() -> None:
    assert (
        can_be_fixed("tensorrt-rtx", "1.7.1.116") and can_be_fixed("tensorrt", "11.4") and can_be_fixed("tensorrt", "")
    )
    assert not can_be_fixed("tensorrt", "10.16.0")


@needs_rtx
def test_the_builder_takes_it_as_writes_in_place(tmp_path: Path) -> None:
    """The real parser and builder: a layer that updates each cache, where the growing one joins tensors."""
    inputs, limits = program().inputs, {"past_sequence": 20, "sequence": 4}
    kinds, signatures = {}, {0: inputs, CAPACITY: fixed_inputs(inputs, CAPACITY)}
    for capacity, signature in signatures.items():
        ir.save(graph(capacity), tmp_path / "model.onnx")
        ranges = [p.to_dict() for p in profiles(signature, limits)]
        asked = request(tmp_path, onnx=tmp_path / "model.onnx", profiles=ranges, architectures=[120])
        kinds[capacity] = call(asked)["layers"]
    assert kinds[CAPACITY]["KV_CACHE_UPDATE"] == 4 and "KV_CACHE_UPDATE" not in kinds[0]
    assert kinds[0]["CONCATENATION"] > kinds[CAPACITY]["CONCATENATION"]
