"""Programs as GGUF files: the numbers are the program's, and llama.cpp computes and writes what moec's engines do."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moec import EagerEngine, open_source
from moec.errors import MoecError
from moec.huggingface.gguf.names import to_gguf
from moec.huggingface.gguf.write import save_gguf
from moec.huggingface.saving.planned import plan
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.weights.lazy import from_tensor
from tests import zoo
from tests.command_line import Cli
from tests.huggingface.gguf import spoken
from tests.passes.test_quantize_widths import context

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
KINDS = {"llama": "llama", "mixtral": "llama", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
Q4, Q8 = "quantize(bits=4, group=32)", "quantize(bits=8, group=32)"
CLOSE = 1e-4  # max |d|/std of the logits in float32; 3e-6 to 2e-5 were measured, and 0.01 to 2 of the wrong files


def made(name: str, **changes: Any) -> tuple[HuggingFaceSource, Program]:
    source = _source(name, repr(changes))
    return source, _captured(source, torch.float32)


def passed(name: str, text: str, dtype: torch.dtype = torch.float32) -> tuple[HuggingFaceSource, Program]:
    source = _source(name)
    program = _captured(source, dtype)
    return source, Pipeline.parse(text).run(program)[0] if text else program


@cache
def _source(name: str, changes: str = "{}") -> HuggingFaceSource:
    own = {"moe_intermediate_size": 64} if name == "qwen3_moe" else {}
    return HuggingFaceSource.from_model(zoo.build(name, **{**SIZES, **own, **ast.literal_eval(changes)}))


@cache
def _captured(source: HuggingFaceSource, dtype: torch.dtype) -> Program:
    """Its program; nobody changes it."""
    return source.capture(dtype)


def read(path: Path) -> dict[str, Tensor]:
    """The numbers of a file, as the library reads and dequantizes them."""
    found = gguf.GGUFReader(path).tensors
    return {t.name: torch.from_numpy(np.array(gguf.dequantize(t.data, t.tensor_type))) for t in found}


def wanted(program: Program, source: Any) -> tuple[dict[str, Tensor], set[str]]:
    """The numbers of a program under the file's names, scales in 16 bits; and which of them are packed."""
    planned = plan(program, source, untouched=True)
    named: Mapping[str, Any] = to_gguf(planned.stored, planned.config, KINDS[planned.config.model_type])
    found = {}
    for name, weight in named.items():
        c = weight.coded
        found[name] = (
            torch.ops.moec.dequantize(c.packed.load(), c.scale.load().half().float(), None, bits=c.bits)
            if c
            else weight.load().float()
        )
    return found, {n for n, w in named.items() if w.coded}


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("llama", "upcycle(experts=4, top_k=2), " + Q4),
        ("qwen3", "upcycle(experts=4, top_k=2), " + Q8),
        ("mixtral", Q4),
        ("qwen3_moe", "prune-experts(score=random), " + Q8),
        ("llama", "quantize(bits=8, group=64, dense=16)"),
    ],
)
def test_the_library_reads_what_the_program_computes_with(name: str, passes: str, tmp_path: Path) -> None:
    source, program = passed(name, passes)
    said = save_gguf(program, tmp_path / "m.gguf", source, floats="f32")
    found, (want, packed) = read(tmp_path / "m.gguf"), wanted(program, source)
    assert set(found) == set(want) and packed
    assert [n for n in want if not torch.equal(found[n], want[n])] == []
    assert any("of a step" in line for line in said) and not any("rounded to f32" in line for line in said)


def test_a_program_in_float16_is_written_bit_for_bit(tmp_path: Path) -> None:
    source, program = passed("mixtral", Q4, torch.float16)
    said = save_gguf(program, tmp_path / "m.gguf", source)
    assert "codes and scales are the program's own, bit for bit" in said
    assert not any("rounded" in line for line in said)


def test_floats_are_rounded_to_what_is_asked_for(tmp_path: Path) -> None:
    source, program = made("llama")
    want, _ = wanted(program, source)
    for floats, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)):
        said = save_gguf(program, tmp_path / floats, source, floats=floats)
        found = read(tmp_path / floats)
        assert all(torch.equal(found[n], w.to(dtype).float() if w.dim() > 1 else w) for n, w in want.items()), floats
        assert any("rounded" in line for line in said) == (floats != "f32")


WAYS_OUT = {
    "quantize(bits=4, group=16)": ("groups of 16", Q4),
    "quantize(bits=4, group=32, symmetric=False)": ("zero points", Q4),
    "quantize(bits=2, group=32)": ("2 bits", Q4),
    'quantize(bits=4, group=32, rules={"*experts": {"bits": 4, "group": 16}})': ("groups of 16", Q4),
    "quantize(format=fp8, bits=8)": ("small floats", Q8),
}


@pytest.mark.parametrize("passes", WAYS_OUT)
def test_what_the_file_cannot_say_is_refused_with_a_way_out(passes: str, tmp_path: Path) -> None:
    reason, way_out = WAYS_OUT[passes]
    source, program = passed("mixtral", passes)
    with pytest.raises(MoecError, match=reason) as caught:
        save_gguf(program, tmp_path / "m.gguf", source)
    assert caught.value.code == "M206" and [*tmp_path.iterdir()] == []
    assert "group=32" in caught.value.fix or "format=int" in caught.value.fix
    save_gguf(passed("mixtral", way_out)[1], tmp_path / "m.gguf", source)


def test_experts_of_several_widths_are_refused(tmp_path: Path) -> None:
    source, program = made("mixtral")
    text = "quantize(budget_bits=6.0, widths=[4, 8], sensitivity=frequency, group=32, floor=0)"
    program = Pipeline.parse(text).run(program, context())[0]
    with pytest.raises(MoecError, match="differ in width") as caught:
        save_gguf(program, tmp_path / "m.gguf", source)
    assert caught.value.code == "M206" and "one width" in caught.value.fix


@pytest.mark.parametrize(("name", "changes"), [("qwen2_moe", {}), ("qwen3_moe", {"norm_topk_prob": False})])
def test_models_that_llama_cpp_computes_otherwise_are_refused(name: str, changes: Any, tmp_path: Path) -> None:
    source = HuggingFaceSource.from_model(zoo.build(name, **changes))
    with pytest.raises(MoecError) as caught:
        save_gguf(source.capture(), tmp_path / "m.gguf", source)
    assert caught.value.code == "M206" and "--save-hf" in caught.value.fix and [*tmp_path.iterdir()] == []


def test_numbers_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    model = zoo.build("llama", **SIZES)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    source = HuggingFaceSource.from_model(model)
    with pytest.raises(MoecError, match="65504") as caught:
        save_gguf(source.capture(), tmp_path / "m.gguf", source)
    assert caught.value.code == "M203" and [*tmp_path.iterdir()] == []
    save_gguf(source.capture(), tmp_path / "m.gguf", source, floats="f32")  # the way out


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    source, program = made("llama")
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(MoecError) as caught:
        save_gguf(program, tmp_path / "m.gguf", source)
    assert caught.value.code == "M210" and (tmp_path / "m.gguf").read_text() == "mine"


# ---------------------------------------------------------------------- llama.cpp
def llama(path: Path) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    return llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, type_k=0, type_v=0, logits_all=True, verbose=False)


def distance(path: Path, program: Program, source: HuggingFaceSource) -> float:
    """How far llama.cpp's logits are from those of the program in PyTorch, as max |d|/std."""
    ids = torch.randint(3, zoo.VOCAB, (1, 50), generator=torch.Generator().manual_seed(1))
    sample = {**source.sample({"batch": 1, "sequence": 50}), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    want = EagerEngine(program).run(sample)["logits"][0].numpy()
    model = llama(path)
    model.eval(ids[0].tolist())
    found = np.array(model.scores[:50])
    return float(abs(found - want).max() / want.std())


@pytest.mark.serving
@pytest.mark.parametrize("name", KINDS)
def test_llama_cpp_gives_the_logits_of_the_program(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, program = passed(name, "upcycle(experts=4, top_k=2)" if name in ("llama", "qwen3") else "")
    save_gguf(program, tmp_path / "right", source, floats="f32")
    assert distance(tmp_path / "right", program, source) < CLOSE
    for part in ("k_proj", "experts.down_proj", "experts.w_out", "gate.weight"):
        wrong = program.clone()
        changed = next((n for n in wrong.weights if part in n and "layers.1" in n), None)
        if changed:
            value = wrong.weights[changed].load().clone()
            value[-1] += 0.1
            wrong.weights[changed] = from_tensor(value, changed)
            save_gguf(wrong, tmp_path / part, source, floats="f32")
            assert distance(tmp_path / part, program, source) > 100 * CLOSE, part
    if KINDS[name] == "llama":
        monkeypatch.setattr("moec.huggingface.gguf.names._moved", lambda name, weight, *_, back: weight)
        save_gguf(program, tmp_path / "unmoved", source, floats="f32")
        assert distance(tmp_path / "unmoved", program, source) > 100 * CLOSE


@pytest.mark.serving
def test_llama_cpp_scales_positions_as_the_program_does(tmp_path: Path) -> None:
    from tests.huggingface.gguf.test_architecture import LLAMA3

    early = {**LLAMA3, "original_max_position_embeddings": 32}
    for rope in (early, {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}):
        source, program = made("llama", rope_parameters=rope)
        file = tmp_path / str(rope["rope_type"])
        save_gguf(program, file, source, floats="f32")
        assert distance(file, program, source) < CLOSE
        other = made("llama", rope_parameters={"rope_type": "default", "rope_theta": rope["rope_theta"]})[1]
        assert distance(file, other, source) > 100 * CLOSE


@pytest.mark.serving
def test_a_program_that_was_opened_as_a_model_is_written(tmp_path: Path) -> None:
    source, program = passed("llama", Q8)
    wanted, found = tmp_path / "wanted.gguf", tmp_path / "found.gguf"
    source.save_gguf(program, wanted, "f16")
    open_source(program.clone()).save_gguf(program, found, "f16")
    assert found.read_bytes() == wanted.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "passes", "floats"),
    [
        ("llama", "upcycle(experts=4, top_k=2), " + Q4, "f16"),
        ("qwen3", Q4, "f32"),
        ("mixtral", Q8, "f16"),
        ("qwen3_moe", Q4, "bf16"),
    ],
)
def test_llama_cpp_writes_the_text_of_the_engine(name: str, passes: str, floats: str, tmp_path: Path, cli: Cli) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model, engine, file = spoken.folder(name, tmp_path / "model"), tmp_path / "engine", tmp_path / "model.gguf"
    budget = ("--max-kl", "9", "--tolerance", "9")
    given = ("--pass", passes, "--save-gguf", str(file), "--gguf-floats", floats)
    cli.json("compile", str(model), *given, *budget, "-o", str(engine))
    prompt = spoken.TEXT[:25]
    mine = cli.json("run", str(engine), prompt, "--max-tokens", "30")["text"]
    written = llama(file)
    assert written(prompt, max_tokens=30, temperature=0)["choices"][0]["text"] == mine == spoken.TEXT[25:][: len(mine)]
    wrong = tmp_path / "wrong.gguf"
    data = bytearray(file.read_bytes())
    of = next(t for t in gguf.GGUFReader(file).tensors if t.name == "blk.0.attn_output.weight")
    data[of.data_offset : of.data_offset + of.n_bytes] = bytes(of.n_bytes)  # one tensor is zeros
    wrong.write_bytes(data)
    assert llama(wrong)(prompt, max_tokens=30, temperature=0)["choices"][0]["text"] != mine
