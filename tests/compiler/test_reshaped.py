"""What passes make of a shape is what they make of the model."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import moec
from moec.compiler.rehearsals import Rehearsals
from moec.huggingface.shape import shape_of
from moec.planning.formats import FORMATS, Format, stored_bytes
from tests import zoo
from tests.planning import configs

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4}


def small(tmp_path: Path, config: dict[str, object]) -> Rehearsals:
    return Rehearsals(configs.write(tmp_path, config | SMALL | {"num_key_value_heads": 2, "vocab_size": 128}))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Rehearsals:
    return small(tmp_path_factory.mktemp("llama"), configs.LLAMA_1B | {"head_dim": 16})


def test_upcycling_counts_experts_in_every_layer(llama: Rehearsals) -> None:
    before, after = llama.shape, llama.after("upcycle(experts=8, top_k=2)")
    ffn = 3 * 64 * 96
    assert llama.source.stands_for == (0,) * 6  # one layer is captured
    assert after.total == before.total + 6 * (7 * ffn + 8 * 64)
    assert after.active == before.active + 6 * (ffn + 8 * 64)
    assert [(m.experts, m.top_k, m.hidden, m.intermediate) for m in after.mixtures] == [(8, 2, 64, 96)] * 6
    assert after.parts()["dense FFN"] == 0 and after.parts()["attention"] == before.parts()["attention"]


def test_layers_that_a_pass_leaves_stay(llama: Rehearsals) -> None:
    finer = llama.after("upcycle(experts=4, top_k=2, granularity=2)")
    assert [(m.experts, m.top_k, m.intermediate) for m in finer.mixtures] == [(8, 2, 48)] * 6


def test_quantized_bytes_are_those_of_the_weights(llama: Rehearsals) -> None:
    after = llama.after("upcycle(experts=8, top_k=2), quantize(bits=4, group=32)")
    assert after.total == llama.after("upcycle(experts=8, top_k=2)").total  # numbers are counted, not bytes
    experts = 6 * 8 * 3 * 64 * 96
    assert stored_bytes(after.tensors, FORMATS["bf16"])["routed experts"] == experts // 2 + experts // 32 * 2
    assert stored_bytes(after.tensors, FORMATS["fp32"])["routed experts"] == experts // 2 + experts // 32 * 4
    head = stored_bytes(after.tensors, FORMATS["bf16"])["output head"]
    assert head == 128 * 64 + 128 * 2 * 2  # 8 bits, and the table that is tied to it is packed with it


@pytest.mark.repeats
def test_planned_bytes_are_those_of_an_engine(tmp_path: Path) -> None:
    folder = zoo.save("mixtral", tmp_path / "model", vocab_size=2048, hidden_size=64, intermediate_size=128)
    passes = "quantize(bits=4, group=32, recipe={'always': 8, 'down': 8, 'embeddings': 8})"
    moec.compile(folder, out=tmp_path / "engine", pipeline=passes, tolerance=100.0)
    stored = onnx.load(tmp_path / "engine" / "model.onnx").graph.initializer
    weights = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in stored)
    planned = Rehearsals(f"{folder}/config.json").after(passes)
    whole = sum(stored_bytes(planned.tensors, Format("engine", 32, plain=32)).values())
    assert whole == pytest.approx(weights, rel=0.02), (whole, weights)
    plain = sum(stored_bytes(shape_of(str(folder)).tensors, FORMATS["fp32"]).values())
    assert plain != pytest.approx(weights, rel=0.5)


def test_an_expert_less_in_every_layer(tmp_path: Path) -> None:
    paper = small(tmp_path, configs.MIXTRAL)
    after = paper.after("prune-experts(keep=0.75)")
    assert {m.experts for m in after.mixtures} == {6} and len(after.mixtures) == 6
    assert paper.shape.total - after.total == 6 * 2 * (3 * 64 * 96 + 64)
