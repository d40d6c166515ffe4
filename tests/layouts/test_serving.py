"""The commands that serve what was written, and what the engines have no kernel for."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.huggingface.gguf.write import save_gguf
from moec.huggingface.saving.save import save_hf
from moec.huggingface.source import HuggingFaceSource
from moec.layouts.serving import serving_of
from moec.pipeline.pipeline import Pipeline
from tests import zoo

LEFT = "{'*.0.mlp.experts.*': 16}"  # the experts of one layer stay floats


def notes(name: str, passes: str, folder: Path, hf_format: str = "compressed-tensors") -> str:
    program = Pipeline.parse(passes).run(zoo.captured(name))[0]
    save_hf(program, folder, zoo.source(name), hf_format=hf_format)
    found = serving_of(folder, None)
    assert found[-1].command == f"vllm serve '{folder}'"
    assert [each.engine for each in found[:-1]] == (["TensorRT-LLM"] if hf_format == "modelopt" else [])
    return "; ".join(note for each in found for note in each.notes)


@pytest.mark.parametrize(
    ("name", "passes", "said", "unsaid"),
    [
        ("llama", "upcycle(experts=4, top_k=2)", ["--enable-expert-parallel"], ["kernel"]),
        ("mixtral", "quantize(bits=4, group=16)", ["groups of 16", "lm_head=16"], ["bits="]),
        ("mixtral", "quantize(bits=4, group=16, lm_head=16)", ["groups of 16"], ["lm_head=16"]),
        ("llama", "quantize(bits=8, group=32, lm_head=16)", ["8 bits: write bits=4"], ["lm_head", "parallel"]),
        ("llama", "quantize(bits=4, group=32, lm_head=4)", [], ["kernel", "lm_head"]),
        ("llama", "quantize(bits=2, group=32, lm_head=16)", ["bits=4"], ["parallel"]),
        (
            "mixtral",
            "quantize(bits=8, format=fp8, lm_head=16)",
            ["for FP8", "format=nvfp4"],
            ["groups", "8 bits: write", "NVFP4 on GPUs"],
        ),
        ("llama", "quantize(bits=4, format=nvfp4, lm_head=16)", ["for NVFP4"], ["groups", "activations"]),
        ("mixtral", "quantize(bits=4, format=nvfp4, lm_head=16)", ["Marlin", "experts=16"], ["wants"]),
        ("mixtral", "quantize(bits=4, format=nvfp4, lm_head=16, experts=16)", ["for NVFP4"], ["Marlin", "hidden"]),
        ("mixtral", "quantize(bits=4, group=16, rules={'*.0.mlp.experts.*': 8})", ["experts in one width"], ["zero"]),
        ("mixtral", "quantize(bits=4, group=16, lm_head=16, experts=16)", ["groups of 16"], ["Marlin", "WNA16"]),
        ("deepseek_v2", "quantize(bits=4, format=nvfp4, lm_head=16, experts=16)", ["for NVFP4"], ["Marlin"]),
        ("mixtral", f"quantize(bits=4, format=nvfp4, lm_head=16, rules={LEFT})", ["Marlin"], ["wants"]),
    ],
)
def test_what_vllm_lacks_is_said(name: str, passes: str, said: list[str], unsaid: list[str], tmp_path: Path) -> None:
    found = notes(name, passes, tmp_path / "a checkpoint")
    assert all(word in found for word in said) and not any(word in found for word in unsaid), found


@pytest.mark.parametrize(
    ("name", "passes", "said", "unsaid"),
    [
        ("mixtral", "quantize(bits=4, group=16)", ["groups of 16", "lm_head=16"], ["bits="]),
        ("qwen3_moe", "quantize(bits=4, group=32, experts=16, lm_head=16)", [], ["kernel"]),
        ("llama", "quantize(bits=4, group=32, lm_head=16)", [], ["kernel", "symmetric"]),
        (
            "llama",
            "quantize(bits=8, group=32, symmetric=False)",
            ["symmetric=True", "bits=4, lm_head=16"],
            ["parallel"],
        ),
        ("llama", "quantize(bits=4, group=32)", ["8 bits: write lm_head=16"], ["bits=4"]),
        ("llama", "quantize(bits=4, group=32, lm_head=4)", ["transformers (5.23)"], ["kernel"]),
        ("llama", "quantize(bits=4, group=32, lm_head=16, rules={'*.1.mlp.*': 2})", ["for 2 bits"], ["groups"]),
    ],
)
def test_what_vllm_lacks_for_gptqs_form_is_said(
    name: str, passes: str, said: list[str], unsaid: list[str], tmp_path: Path
) -> None:
    found = notes(name, passes, tmp_path / "a checkpoint", "gptq")
    assert all(word in found for word in said) and not any(word in found for word in unsaid), found


@pytest.mark.parametrize(
    ("name", "passes", "said", "unsaid"),
    [
        ("llama", "quantize(bits=8, format=fp8, lm_head=16)", ["was not run", "no proof"], ["kernel", "Marlin"]),
        (
            "mixtral",
            "quantize(bits=4, format=nvfp4, lm_head=16)",
            ["'TRTLLM'", "512", "64 divides, not 48"],
            ["10 experts"],
        ),
        ("mixtral", f"quantize(bits=4, format=nvfp4, lm_head=16, rules={LEFT})", ["'TRTLLM'", "Marlin"], []),
        ("mixtral", "quantize(bits=4, format=nvfp4, lm_head=16, experts=16)", ["for NVFP4"], ["'TRTLLM'", "Marlin"]),
    ],
)
def test_what_is_said_of_modelopts_form(
    name: str, passes: str, said: list[str], unsaid: list[str], tmp_path: Path
) -> None:
    found = notes(name, passes, tmp_path / "a checkpoint", "modelopt")
    assert all(word in found for word in said) and not any(word in found for word in unsaid), found


@pytest.mark.parametrize(
    ("symmetric", "top_k", "said"),
    [(True, 2, "pip install zentorch"), (True, 1, "wants two experts a token"), (False, 2, "symmetric=True")],
)
def test_experts_in_groups_of_32_have_few_kernels(symmetric: bool, top_k: int, said: str, tmp_path: Path) -> None:
    source = HuggingFaceSource.from_model(zoo.build("mixtral", intermediate_size=64, num_experts_per_tok=top_k))
    passes = f"quantize(bits=4, group=32, lm_head=16, symmetric={symmetric})"
    save_hf(Pipeline.parse(passes).run(source.capture())[0], tmp_path / "out", source)
    assert said in "; ".join(serving_of(tmp_path / "out", None)[0].notes)


def test_shared_experts_that_stay_floats_are_no_experts(tmp_path: Path) -> None:
    source = HuggingFaceSource.from_model(zoo.build("deepseek_v2", moe_intermediate_size=32))
    passes = "quantize(bits=4, format=nvfp4, lm_head=16, dense=16)"
    save_hf(Pipeline.parse(passes).run(source.capture())[0], tmp_path / "out", source)
    assert "Marlin" in "; ".join(serving_of(tmp_path / "out", None)[0].notes)


def test_a_file_without_a_vocabulary_is_not_for_texts(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    save_gguf(zoo.captured("llama"), tmp_path / "m.gguf", zoo.source("llama"))
    (found,) = serving_of(None, tmp_path / "m.gguf")
    assert found.lines()[0] == f"serve with llama.cpp: llama-server -m {tmp_path / 'm.gguf'}"
    assert "no vocabulary" in found.lines()[1] and serving_of(None, None) == []
