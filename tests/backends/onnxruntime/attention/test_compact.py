"""Decoders whose cache holds tokens only, as engines: right for padding everywhere, whatever the cache holds, on both
sides of a window; and wrong without what makes them so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from moec.backends.onnx.cache_rows import COMPACT
from moec.backends.onnxruntime.attention.kv_cache import SHARED
from moec.backends.onnxruntime.attention.token_order import masks
from moec.backends.onnxruntime.backend import Onnxruntime
from moec.backends.onnxruntime.session.engine import OnnxruntimeEngine
from moec.huggingface.source import HuggingFaceSource
from moec.program.decoder_signature import IDS, LOGITS, MASK, PAST, cache_inputs, without_padding
from moec.program.program import Program
from moec.targets.target import Target
from tests.backends.onnxruntime.blocks import error
from tests.zoo import VOCAB, build

CUDA, CPU = Target.parse("onnxruntime:cuda,precision=fp16"), Target.parse("onnxruntime:precision=fp16")
LIMIT = 0.02  # max |d|/std of float16 against float32; found 0.002 to 0.009
WINDOW = 5
SIZES = [(6, 9, 0), (1, 1, 0), (6, 1, WINDOW - 1), (6, 1, WINDOW), (6, 1, WINDOW + 1), (6, 4, 3), (1, 3, WINDOW)]
Change = Callable[[ir.Model], Any]


def sample(program: Program, batch: int, new: int, past: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch + new + past)
    found = {IDS: torch.randint(3, VOCAB, (batch, new), generator=generator), MASK: masks(past, new)[:batch]}
    for spec in cache_inputs(program.inputs):
        found[spec.name] = torch.randn(spec.resolve({"batch": batch, PAST: past}), generator=generator).half()
    return found


class Made:
    """An engine for CUDA, on the CPU; the program in float32, captured anew from the untouched model."""

    def __init__(self, name: str, folder: Path, change: Change | None = None) -> None:
        source = HuggingFaceSource.from_model(build(name, num_hidden_layers=2 if name in ("gpt_oss", "gemma2") else 1))
        program = source.capture(torch.float16)
        self.facts = Onnxruntime().build(program, CUDA, folder)
        if change is not None:
            model = ir.load(folder / "model.onnx")
            change(model)
            ir.save(model, folder / "model.onnx")
        self.engine, self.program = OnnxruntimeEngine(folder, CPU), source.capture(torch.float32)
        self._eager = self.program.module("cpu")

    def worst(self, batch: int, new: int, past: int) -> float:
        """The largest error of logits and cache."""
        given = sample(self.program, batch, new, past)
        wide = [v.float() if v.is_floating_point() else v for v in (given[i.name] for i in self.program.inputs)]
        want = dict(zip(self.program.outputs, self._eager(*wide), strict=True))
        found = self.engine(**given)
        return max(error(without_padding(found[n], given), without_padding(want[n], given)) for n in want)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss", "gemma2"])
def test_padding_and_windows(name: str, tmp_path: Path) -> None:
    made = Made(name, tmp_path)
    model = ir.load(tmp_path / "model.onnx")
    assert {COMPACT, SHARED} <= set(model.metadata_props)
    assert not {"If", "Softmax", "Where"} & {node.op_type for node in model.graph}, "no branch and no mask"
    assert max(made.worst(*size) for size in SIZES) < LIMIT
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


def forget(op: str, at: int) -> Change:
    """Let what an operator made be what it was made of."""

    def apply(model: ir.Model) -> None:
        (node,) = [n for n in model.graph if n.op_type == op and str(n.name).startswith("tokens_first")][:1]
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[at])

    return apply


@pytest.mark.parametrize(("name", "change", "size"), [
    ("mistral", window_of(WINDOW - 1), (1, 1, WINDOW)), ("mistral", window_of(WINDOW + 1), (1, 1, WINDOW)),
    ("mistral", window_of(-1), (6, 9, 0)), ("gpt_oss", each_attention(lambda n: n.replace_input_with(11, None)), (1, 3, 2)),
    ("llama", forget("GatherElements", 0), (6, 9, 0)), ("llama", forget("GatherND", 0), (6, 9, 0)),
    ("llama", forget("Sub", 0), (1, 3, 2)),
], ids=["narrow", "wide", "no window", "no sinks", "not moved", "not moved back", "length"])  # fmt: skip
def test_wrong_ones_are_found(name: str, change: Change, size: tuple[int, int, int], tmp_path: Path) -> None:
    assert Made(name, tmp_path, change).worst(*size) > 5 * LIMIT


def test_a_mask_of_fixed_length_and_a_cache_of_another(tmp_path: Path) -> None:
    made = Made("mistral", tmp_path)
    given = sample(made.program, 1, 1, 7)
    given[MASK] = torch.ones_like(given[MASK])
    want = made.engine(**given)[LOGITS]
    longer = {n: torch.nn.functional.pad(v, (0, 0, 0, 9), value=9.0) for n, v in given.items() if v.dim() == 4}
    mask = torch.nn.functional.pad(given[MASK], (9, 0))
    session = made.engine._session
    feeds = {IDS: given[IDS], MASK: mask, **longer}
    assert error(torch.from_numpy(session.run([LOGITS], {n: v.numpy() for n, v in feeds.items()})[0]), want) < 1e-3


def test_other_forms_keep_their_mask(tmp_path: Path) -> None:
    for text in ("onnxruntime:cuda", "onnxruntime:precision=fp16"):
        source = HuggingFaceSource.from_model(build("llama", num_hidden_layers=1))
        target = Target.parse(text)
        Onnxruntime().build(source.capture(Onnxruntime().precision(target)), target, tmp_path)
        assert COMPACT not in ir.load(tmp_path / "model.onnx").metadata_props
