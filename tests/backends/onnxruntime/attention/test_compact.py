"""Decoders whose cache holds tokens only, as engines: right for padding everywhere, whatever the cache holds, on both
sides of a window; and wrong without what makes them so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

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


@dataclass
class Made:
    """An engine for CUDA, on the CPU, and the program in float32, captured anew from the untouched model."""

    folder: Path
    facts: dict[str, Any]
    program: Program
    eager: Any

    def worst(self, size: tuple[int, int, int], folder: Path | None = None) -> float:
        """The largest error of logits and cache."""
        given = sample(self.program, *size)
        wide = [v.float() if v.is_floating_point() else v for v in (given[i.name] for i in self.program.inputs)]
        want = dict(zip(self.program.outputs, self.eager(*wide), strict=True))
        found = OnnxruntimeEngine(folder or self.folder, CPU)(**given)
        return max(error(without_padding(found[n].float(), given), without_padding(want[n], given)) for n in want)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Each model once. gpt-oss asks all experts: a near tie says nothing of attention."""

    @cache
    def made(name: str) -> Made:
        changes = {"num_local_experts": 2} if name == "gpt_oss" else {}
        layers = 1 if name == "mistral" else 2
        source = HuggingFaceSource.from_model(build(name, num_hidden_layers=layers, **changes))
        folder = tmp_path_factory.mktemp(name)
        facts = Onnxruntime().build(source.capture(torch.float16), CUDA, folder)
        program = source.capture(torch.float32)
        return Made(folder, facts, program, program.module("cpu"))

    return made


@pytest.mark.parametrize("name", ["mistral", "gpt_oss", pytest.param("gemma2", marks=pytest.mark.repeats)])
def test_padding_and_windows(name: str, make: Callable[[str], Made]) -> None:
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


def forget(op: str, at: int) -> Change:
    """Let what an operator made be what it was made of."""

    def apply(model: ir.Model) -> None:
        (node,) = [n for n in model.graph if n.op_type == op and str(n.name).startswith("tokens_first")][:1]
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[at])

    return apply


@pytest.mark.parametrize(("name", "change", "size"), [
    ("mistral", window_of(WINDOW - 1), (1, 1, WINDOW)), ("mistral", window_of(WINDOW + 1), (1, 1, WINDOW)),
    ("mistral", window_of(-1), (6, 9, 0)), ("gpt_oss", no_sinks, (1, 3, 2)),
    ("mistral", forget("GatherElements", 0), (6, 9, 0)), ("mistral", forget("GatherND", 0), (6, 9, 0)),
    ("mistral", forget("Add", 0), (1, 3, 2)),
], ids=["narrow", "wide", "no window", "no sinks", "not moved", "not moved back", "length"])  # fmt: skip
def test_wrong_ones_are_found(
    name: str, change: Change, size: tuple[int, int, int], make: Callable[[str], Made], tmp_path: Path
) -> None:
    made = make(name)
    wrong = Path(copytree(made.folder, tmp_path / "wrong"))
    model = ir.from_proto(onnx.load(wrong / "model.onnx"))
    change(model)
    onnx.save(ir.to_proto(model), wrong / "model.onnx")
    assert made.worst(size, wrong) > 5 * LIMIT


def test_a_mask_of_fixed_length_and_a_cache_of_another(make: Callable[[str], Made]) -> None:
    made = make("mistral")
    given = sample(made.program, 1, 1, 7)
    engine = OnnxruntimeEngine(made.folder, CPU)
    want = engine(**given)[LOGITS]
    longer = {n: pad(v, (0, 0, 0, 9), value=9.0) for n, v in given.items() if v.dim() == 4}
    feeds = {IDS: given[IDS], MASK: pad(given[MASK], (9, 0)), **longer}
    found = engine._session.run([LOGITS], {n: v.numpy() for n, v in feeds.items()})[0]
    assert error(torch.from_numpy(found), want) < 1e-3
