"""Decoders whose cache holds tokens only, as engines: right for padding everywhere, whatever the cache holds, on both
sides of a window; and wrong without what makes them so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from shutil import copytree
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from onnxruntime import OrtValue
from torch.nn.functional import pad

from moec.backends.onnx.cache_rows import COMPACT
from moec.backends.onnx.emit import Emitter
from moec.backends.onnxruntime.attention.kv_cache import SHARED
from moec.backends.onnxruntime.session.engine import OnnxruntimeEngine
from moec.program.decoder_signature import IDS, LOGITS, MASK, present_name
from tests.backends.onnxruntime.attention.engines import CPU, LIMIT, SIZES, WINDOW, Made, sample
from tests.backends.onnxruntime.blocks import error

Change = Callable[[ir.Model], Any]
Make = Callable[[str], Made]


@pytest.mark.parametrize("name", ["mistral", "gpt_oss", pytest.param("gemma2", marks=pytest.mark.repeats)])
def test_padding_and_windows(name: str, make: Make) -> None:
    made = make(name)
    model = ir.load(made.folder / "model.onnx")
    assert {COMPACT, SHARED} <= set(model.metadata_props)
    assert not {"If", "Where"} & {node.op_type for node in model.graph}, "no branch and no mask"
    assert max(made.worst(size) for size in SIZES) < LIMIT
    assert all("before padding" in fact["formulation"] and fact["why"] for fact in made.facts["attention"])


def each_attention(change: Callable[[ir.Node], Any]) -> Change:
    def apply(model: ir.Model) -> None:
        nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
        assert nodes
        for node in nodes:
            change(node)

    return apply


def window_of(tokens: int) -> Change:
    return each_attention(
        lambda node: node.attributes.update({"local_window_size": ir.AttrInt64("local_window_size", tokens)})
    )


no_sinks = each_attention(lambda node: node.replace_input_with(11, None))


def forget(op: str, at: int, which: int = 0) -> Change:
    """Let what an operator made be what it was made of; `which` of those that put tokens first."""

    def apply(model: ir.Model) -> None:
        node = [n for n in model.graph if n.op_type == op and str(n.name).startswith("tokens_first")][which]
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[at])

    return apply


def too_short(model: ir.Model) -> None:
    """Each row one place shorter than it is."""
    node = [n for n in model.graph if n.op_type == "Sub" and str(n.name).startswith("tokens_first")][-1]
    node.replace_input_with(1, Emitter(model.graph, node).number(2.0, ir.DataType.FLOAT))


@pytest.mark.parametrize(("name", "change", "size"), [
    ("mistral", window_of(WINDOW - 1), (1, 1, WINDOW)), ("mistral", window_of(WINDOW + 1), (1, 1, WINDOW)),
    ("mistral", window_of(-1), (6, 9, 0)), ("gpt_oss", no_sinks, (1, 3, 2)),
    ("mistral", forget("GatherElements", 0), (6, 9, 0)), ("mistral", forget("GatherND", 0), (6, 9, 0)),
    ("mistral", too_short, (1, 3, 2)), ("mistral", forget("Sub", 0, -2), (6, 4, 3)),
], ids=["narrow", "wide", "no window", "no sinks", "not moved", "not moved back", "length", "padding"])  # fmt: skip
def test_wrong_ones_are_found(
    name: str, change: Change, size: tuple[int, int, int], make: Make, tmp_path: Path
) -> None:
    made = make(name)
    wrong = Path(copytree(made.folder, tmp_path / "wrong"))
    model = ir.from_proto(onnx.load(wrong / "model.onnx"))
    change(model)
    onnx.save(ir.to_proto(model), wrong / "model.onnx")
    assert made.worst(size, wrong) > 5 * LIMIT


def test_a_mask_of_fixed_length_and_a_cache_of_another(make: Make) -> None:
    made = make("mistral")
    given = sample(made.program, 1, 1, 7)
    engine = OnnxruntimeEngine(made.folder, CPU)
    want = engine(**given)[LOGITS]
    longer = {n: pad(v, (0, 0, 0, 9), value=9.0) for n, v in given.items() if v.dim() == 4}
    feeds = {IDS: given[IDS], MASK: pad(given[MASK], (9, 0)), **longer}
    found = engine._session.run([LOGITS], {n: v.numpy() for n, v in feeds.items()})[0]
    assert error(torch.from_numpy(found), want) < 1e-3


def test_a_mask_longer_than_a_shared_buffer_is_refused(make: Make) -> None:
    """Where one buffer is past and present the operator writes no more places than it has."""
    made = make("mistral")
    given = sample(made.program, 1, 1, 7)
    session = OnnxruntimeEngine(made.folder, CPU)._session
    for room, works in ((8, True), (7, False)):
        binding = session.io_binding()
        for name, value in given.items():
            value = pad(value, (0, 0, 0, room - 7)) if value.dim() == 4 else value
            held = OrtValue.ortvalue_from_numpy(value.numpy())
            binding.bind_ortvalue_input(name, held)
            if value.dim() == 4:
                binding.bind_ortvalue_output(present_name(name), held)
        binding.bind_output(LOGITS)
        with nullcontext() if works else pytest.raises(Exception, match="present"):
            session.run_with_iobinding(binding)


def test_what_is_inside_can_be_looked_at(make: Make) -> None:
    made = make("mistral")
    given = sample(made.program, 2, 4, 3)
    given[MASK] = torch.ones_like(given[MASK])
    engine = OnnxruntimeEngine(made.folder, CPU)
    inside, logits = engine.intermediates(given), engine(**given)[LOGITS]
    assert error(inside[LOGITS], logits) < LIMIT and error(inside[LOGITS], logits.flip(0)) > 5 * LIMIT
