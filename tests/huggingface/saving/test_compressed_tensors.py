"""A quantized program goes into compressed-tensors form and comes back byte for byte; the format's own library reads
the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moec import open_source
from moec.errors import MoecError
from moec.huggingface.source import HuggingFaceSource
from moec.program.program import Program
from moec.weights.lazy import from_tensor
from tests.huggingface import packed
from tests.huggingface.conftest import Saved

SavedProgram = tuple[HuggingFaceSource, Program, Path]
TOLERANCE = 2e-5  # of the logits' standard deviation
CASES = [
    ("mixtral", "quantize(bits=4, group=16)"),
    ("mixtral", "quantize(bits=8, group=16, symmetric=False, lm_head=16)"),
    ("qwen3_moe", "quantize(bits=2, group=16, rules={'*.experts.down_proj': 16, '*.experts.gate_up_proj': 16})"),
    ("deepseek_v3", "quantize(bits=4, group=16, attention=16, rules={'*.experts.*': 16, '*.1.mlp.shared*': 16})"),
    ("llama", "quantize(bits=4, group=16, symmetric=False)"),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]} {case[1]}")
def made(request: pytest.FixtureRequest, saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> SavedProgram:
    """A source, its quantized program, and the folder that it was saved in; each made once."""
    name, text = request.param
    folder = tmp_path_factory.mktemp("packed") / "out"
    return (*packed.write(saved(name), text, folder), folder)


def test_round_trip(made: SavedProgram) -> None:
    source, program, folder = made
    back = open_source(str(folder))
    again = back.capture()
    assert packed.same_bytes(program, again) == set()
    wanted = packed.logits_of(program.run, source)
    assert torch.equal(packed.logits_of(again.run, back), wanted)
    assert float((packed.logits_of(back.reference(), back) - wanted).abs().max() / wanted.std()) < TOLERANCE
    assert (
        float((packed.logits_of(source.reference(), source) - wanted).abs().max() / wanted.std()) > 100 * TOLERANCE
    )  # it was quantized


def test_a_wrong_scale_is_seen(saved: Saved, tmp_path: Path) -> None:
    source, program = packed.write(saved("mixtral"), "quantize(bits=4, group=16)", tmp_path / "out")
    name = "model.layers.1.mlp.experts.down_proj_scale"
    wanted = packed.logits_of(program.run, source)
    program.weights[name] = from_tensor(program.weights[name].load() * 1.01, name)
    back = open_source(str(tmp_path / "out"))
    assert packed.same_bytes(program, back.capture()) == {name}
    assert float((packed.logits_of(program.run, source) - wanted).abs().max() / wanted.std()) > TOLERANCE


def test_the_formats_library_reads_the_same(made: SavedProgram) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    _, program, folder = made
    theirs, ours = packed.read_by_library(folder), open_source(str(folder)).origin.checkpoint.weights  # type: ignore[attr-defined]
    assert {n for n, w in ours.items() if w.coded is not None} == set(theirs)
    assert all(torch.equal(value, ours[n].load()) for n, value in theirs.items())
    assert any(float(w.coded.scale.load().min()) < 0 for w in ours.values() if w.coded is not None) is not any(
        n.endswith("_zero_point") for n in program.weights
    )


def test_config_says_what_is_packed_and_what_is_not(saved: Saved, tmp_path: Path) -> None:
    packed.write(
        saved("mixtral"),
        "quantize(bits=4, group=16, lm_head=16, rules={'*.1.self_attn.o_proj': 16, '*.0.mlp.experts.*': 8})",
        tmp_path / "out",
    )
    config, stored = packed.config_of(tmp_path / "out"), packed.tensors(tmp_path / "out")
    groups = config["config_groups"].values()
    eight, four = (
        next(g for g in groups if ok(g))
        for ok in (lambda g: "Linear" in g["targets"], lambda g: g["weights"]["num_bits"] == 4)
    )
    layer = [f"model.layers.{i}" for i in (0, 1)]
    assert (
        eight["targets"] == ["Linear"]
        and eight["weights"] | {"num_bits": 8, "group_size": 16, "symmetric": True, "type": "int"} == eight["weights"]
    )
    assert (
        rf"re:{layer[1]}.block_sparse_moe.experts..*".replace(".", r"\.").replace(r"\.\.*", r"\..*") in four["targets"]
    )
    assert f"{layer[0]}.self_attn.q_proj" in four["targets"] and four["weights"]["num_bits"] == 4
    assert set(config["ignore"]) == {
        "lm_head",
        f"{layer[1]}.self_attn.o_proj",
        *(f"{path}.block_sparse_moe.gate" for path in layer),
    }
    assert "lm_head.weight" in stored and stored[f"{layer[0]}.block_sparse_moe.experts.3.w2.weight_shape"].tolist() == [
        32,
        48,
    ]


@pytest.mark.parametrize("passes", ["quantize(bits=4, group=16)", "quantize(bits=4, group=16, attention=8)"])
def test_transformers_reads_experts_beside_a_head_of_another_width(passes: str, saved: Saved, tmp_path: Path) -> None:
    """It takes the first group of config.json for experts, where none names them."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from transformers import AutoModelForCausalLM

    source, program = packed.write(saved("mixtral"), passes, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, experts_implementation="eager")
    sample = source.sample(packed.SIZES)
    with torch.no_grad():
        said = model(**{name: sample[name] for name in ("input_ids", "attention_mask")}).logits
    wanted = packed.logits_of(program.run, source)
    assert float((said[sample["attention_mask"].bool()] - wanted).abs().max() / wanted.std()) < TOLERANCE


def test_a_head_is_named_since_servers_want_that(saved: Saved, tmp_path: Path) -> None:
    packed.write(saved("mixtral"), "quantize(bits=8, group=16)", tmp_path / "out")
    (group,) = packed.config_of(tmp_path / "out")["config_groups"].values()
    assert group["targets"] == ["Linear", "lm_head"]


def test_a_tied_table_becomes_a_packed_head_and_a_plain_embedding_of_the_same_numbers(
    saved: Saved, tmp_path: Path
) -> None:
    packed.write(saved("llama"), "quantize(bits=8, group=16)", tmp_path / "out")
    stored, source = packed.tensors(tmp_path / "out"), open_source(str(tmp_path / "out"))
    assert not source.origin.template.config.tie_word_embeddings
    assert torch.equal(stored["model.embed_tokens.weight"], source.origin.checkpoint.weights["lm_head.weight"].load())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "kind"), [("llama", "mixtral"), ("qwen3", "qwen3_moe")])
def test_upcycled_and_quantized(name: str, kind: str, saved: Saved, tmp_path: Path) -> None:
    source, program = packed.write(
        saved(name), "upcycle(experts=2, top_k=1), quantize(bits=4, group=16)", tmp_path / "out"
    )
    back = open_source(str(tmp_path / "out"))
    again, wanted = back.capture(), packed.logits_of(program.run, source)
    assert back.origin.template.config.model_type == kind
    assert float((packed.logits_of(again.run, back) - wanted).abs().max() / wanted.std()) < TOLERANCE
    assert sum("experts" in n and n.endswith("_packed") for n in again.weights) == 4


REFUSED = [
    ("mixtral", "quantize(bits=4, group=16, rules={'*.q_proj': 8})", "computed as one", "self_attn"),
    (
        "mixtral",
        "quantize(bits=4, group=16, rules={'*.1.mlp.experts.down_proj': 8})",
        "computed as one",
        "layers.1.block_sparse_moe.experts",
    ),
    ("mixtral", "quantize(bits=4, group=16, rules={'*.v_proj': 16})", "unquantized", "self_attn"),
    ("gpt_oss", "quantize(bits=8, group=16, experts=16)", "layout of their own", "mlp.experts"),
    ("gpt2", "quantize(bits=4, group=16)", "no linear layer", "c_attn"),
    ("llama", "upcycle, quantize(bits=4, group=16, embeddings=16)", "tied", "head"),
]


@pytest.mark.parametrize(("name", "text", "words", "where"), REFUSED)
def test_what_the_form_cannot_hold_is_refused(
    name: str, text: str, words: str, where: str, saved: Saved, tmp_path: Path
) -> None:
    with pytest.raises(MoecError) as caught:
        packed.write(saved(name), text, tmp_path / "out")
    assert (
        caught.value.code == "M206"
        and words.replace("computed", "compute") in caught.value.what
        and where in caught.value.what
        and caught.value.fix
    )
    assert not (tmp_path / "out").exists()


def test_embeddings_alone_that_are_packed_make_a_plain_checkpoint(saved: Saved, tmp_path: Path) -> None:
    text = "quantize(bits=8, group=16, attention=16, experts=16, lm_head=16, embeddings=8)"
    source, program = packed.write(saved("mixtral"), text, tmp_path / "out")
    back = open_source(str(tmp_path / "out"))
    assert not hasattr(back.origin.template.config, "quantization_config")  # type: ignore[attr-defined]
    difference = packed.logits_of(back.reference(), back) - packed.logits_of(program.run, source)
    assert float(difference.abs().max() / packed.logits_of(program.run, source).std()) < TOLERANCE
