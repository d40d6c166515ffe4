"""An encoder and a decoder become two graphs beside each other, proven alone and together."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

import moec
from moec import MoecError
from moec.execution.encoder_decoder import EncoderDecoderEngine
from moec.execution.parts import respond
from moec.huggingface.source import HuggingFaceSource
from moec.proof.checks.cache import CacheConsistency
from moec.proof.checks.proven_parts import ProvenParts
from moec.report.report import Report
from tests import encoder_decoders
from tests.command_line import Cli
from tests.encoder_decoders import generated, padded, signed_anew


def test_both_graphs_lie_where_optimum_looks_and_each_part_is_an_engine(translator_engine: Path) -> None:
    files = {p.relative_to(translator_engine).as_posix() for p in translator_engine.rglob("*") if p.is_file()}
    assert {"encoder_model.onnx", "decoder_model_merged.onnx", "config.json", "encoder/moec.json"} <= files
    assert [name for name in sorted(files) if name.endswith(".data")] == [
        "decoder/model.onnx.data",
        "encoder/model.onnx.data",
    ]
    decoder = moec.load(translator_engine / "decoder")
    names = [i.name for i in decoder.inputs]
    assert names[:3] == ["input_ids", "encoder_attention_mask", "encoder_hidden_states"]
    assert names[3:] == [f"past_key_values.0.{w}.{kind}" for w in ("decoder", "encoder") for kind in ("key", "value")]
    assert decoder.outputs[0] == "logits" and "present.0.encoder.value" in decoder.outputs


def test_the_manifest_says_what_was_proven(translator_engine: Path) -> None:
    report = moec.api.read_report(translator_engine)
    parts, cache = report.proof.find(ProvenParts), report.proof.find(CacheConsistency)
    assert report.ok and parts is not None and [p.part for p in parts.parts] == ["encoder", "decoder"]
    assert cache is not None and len(cache.consistency.ways) == 4
    assert {o.name for o in report.comparison.outputs} == {"logits", "encoder_last_hidden_state"}


def test_texts_are_what_generate_writes(translator: Path, translator_engine: Path) -> None:
    from transformers import BartForConditionalGeneration

    model = BartForConditionalGeneration.from_pretrained(translator).eval()
    engine = moec.load(translator_engine)
    assert isinstance(engine, EncoderDecoderEngine)
    alone = {"input_ids": padded()["input_ids"][1:2]}
    for given, texts in ((padded(), 3), (alone, 1)):
        want = generated(model, given, 64)
        got = torch.stack(list(respond(engine, given, want[:, :1], max_tokens=64)), 1)
        assert got.shape[1] == 64 and got.equal(want[:, 1:])
        assert len(set(map(tuple, got.tolist()))) == texts and len(got.unique()) >= 8


def test_moec_run_writes_it(translator: Path, translator_engine: Path, cli: Cli) -> None:
    from transformers import BartForConditionalGeneration

    model = BartForConditionalGeneration.from_pretrained(translator).eval()
    want = generated(model, {"input_ids": torch.tensor([[5, 6, 7]])}, 6)[0, 1:].tolist()
    found = cli.json("run", translator_engine, "--tokens", "5,6,7", "--max-tokens", "6")
    assert found["tokens"] == want[: len(found["tokens"])] and found["tokens"]


@pytest.mark.parametrize(
    ("options", "code", "way_out"),
    [
        ({"layout": "genai"}, "M208", "--layout plain"),
        ({"target": "tensorrt-rtx", "build": False}, "M208", "--no-cache"),
        ({"save_hf": "elsewhere"}, "M201", "--part"),
        ({"text": "text.txt"}, "M201", "leave it out"),
        ({"calibration": "text.txt"}, "M201", "--part encoder"),
        ({"pipeline": "set-top-k(1)"}, "M203", "set-top-k(rescale=False)"),
    ],
)
def test_what_two_graphs_do_not_go_with_is_refused(
    options: dict[str, object], code: str, way_out: str, translator: Path, tmp_path: Path
) -> None:
    with pytest.raises(MoecError) as error:
        moec.compile(str(translator), out=tmp_path / "engine", **options)  # type: ignore[arg-type]
    assert error.value.code == code and way_out in error.value.fix and not (tmp_path / "engine").exists()


def test_what_looks_at_one_graph_names_the_parts(translator_engine: Path) -> None:
    for verb in (moec.api.bisect, moec.api.build):
        with pytest.raises(MoecError) as error:
            verb(translator_engine)
        assert error.value.code == "M201" and "ENGINE/decoder" in error.value.fix


def test_a_graph_that_was_changed_is_not_loaded(translator_engine: Path, tmp_path: Path) -> None:
    shutil.copytree(translator_engine, tmp_path / "engine")
    graph = tmp_path / "engine" / "encoder_model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(MoecError) as error:
        moec.load(tmp_path / "engine")
    assert error.value.code == "M106" and "encoder_model.onnx" in error.value.what


def _another_start(engine: Path) -> None:
    """Of the decoder's texts."""
    file = engine / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "decoder_start_token_id": 7}))


def _another_graph_on_top(engine: Path) -> None:
    """One whose first norm divides by another number: too little for the joint proof to see."""
    file = engine / "decoder_model_merged.onnx"
    model = onnx.load(str(file), load_external_data=False)
    node = next(n for n in model.graph.node if any(a.name == "epsilon" for a in n.attribute))
    next(a for a in node.attribute if a.name == "epsilon").f *= 1.001
    file.write_bytes(model.SerializeToString())


def _another_part(engine: Path) -> None:
    """A decoder that its own manifest allows more."""
    report = Report.read(engine / "decoder" / "moec.json")
    settings = {**report.settings, "pipeline": "quantize(bits=2)"}
    (engine / "decoder" / "moec.json").write_text(replace(report, settings=settings).to_json())


def _a_part_of_another_model(engine: Path) -> None:
    report = Report.read(engine / "encoder" / "moec.json")
    hashes = {name: digest[::-1] for name, digest in report.source_hashes.items()}
    (engine / "encoder" / "moec.json").write_text(replace(report, source_hashes=hashes).to_json())


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_another_start, "generation_config.json beside the engine is not the model's"),
        (_another_graph_on_top, "decoder_model_merged.onnx is another graph than decoder/model.onnx"),
        (_another_part, "the decoder is a part of another engine: its pipeline is another"),
        (_a_part_of_another_model, "the encoder is a part of another engine: its model is another"),
    ],
)
def test_what_was_exchanged_is_no_engine_of_this_model_though_its_hashes_are_right(
    edit: Callable[[Path], None], says: str, translator_engine: Path, tmp_path: Path
) -> None:
    shutil.copytree(translator_engine, tmp_path / "engine")
    edit(tmp_path / "engine")
    moec.load(signed_anew(tmp_path / "engine")).close()
    with pytest.raises(MoecError, match=re.escape(says)) as error:
        moec.verify(tmp_path / "engine")
    assert error.value.code == "M106"


def test_without_a_cache_it_is_one_graph(translator: Path) -> None:
    source = moec.open_source(str(translator), cache=False)
    assert not source.parts() and [i.name for i in source.inputs][-1] == "decoder_input_ids"
    assert list(moec.open_source(str(translator)).parts()) == ["encoder", "decoder"]


@pytest.mark.repeats
def test_it_is_proven_again_on_other_inputs(translator_engine: Path) -> None:
    proof = moec.verify(translator_engine, seed=5)
    assert proof.ok and proof.find(ProvenParts) is not None and proof.seed == 5


@pytest.mark.repeats
@pytest.mark.parametrize("name", ["t5", "whisper", "speech_to_text", "switch"])
def test_other_families(name: str, tmp_path: Path) -> None:
    model, out = encoder_decoders.build(name), tmp_path / "engine"
    moec.compile(HuggingFaceSource.from_model(model), out=out)
    engine = moec.load(out)
    assert isinstance(engine, EncoderDecoderEngine)
    sounds = {"whisper": torch.randn(2, 8, 40), "speech_to_text": torch.randn(2, 23, 10)}
    given = {"input_features": sounds[name]} if name in sounds else padded()
    start = torch.full((len(next(iter(given.values()))), 1), model.config.decoder_start_token_id)
    got = torch.stack(list(respond(engine, given, start, max_tokens=24)), 1)
    assert got.equal(generated(model, given, 24)[:, -24:])
    assert moec.verify(out, model, seed=3).ok
