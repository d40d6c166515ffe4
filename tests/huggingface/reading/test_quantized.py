"""Checkpoints that are quantized already: compiled as they are, or refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import moec
from moec import open_source
from moec.errors import MoecError
from moec.huggingface.reading.quantized import decoder_of, keep_packed
from moec.program.program import Program
from moec.weights.lazy import rowwise
from tests import zoo
from tests.huggingface import packed
from tests.huggingface.conftest import Saved

TOLERANCE = 2e-5  # of the logits' standard deviation
GROUP = {
    "targets": ["Linear"],
    "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16},
}


@pytest.fixture(scope="module")
def four_bits(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral in compressed-tensors form."""
    folder = tmp_path_factory.mktemp("packed") / "mixtral"
    packed.write(saved("mixtral"), "quantize(bits=4, group=16, lm_head=16)", folder)
    return folder


@pytest.fixture(scope="module")
def program(four_bits: Path) -> Program:
    """What is captured of it; not to be changed."""
    return open_source(str(four_bits)).capture()


def test_it_compiles_into_packed_kernels_and_equals_the_decoded_model(four_bits: Path, tmp_path: Path) -> None:
    report = moec.compile(str(four_bits), out=tmp_path / "engine")
    assert report.comparison.ok and all(step["contract"] == "exact" for step in report.steps)
    assert {b["kernel"] for b in report.facts["blocks"]} == {"QMoE"} and {
        p["bits"] for p in report.facts["packed"]
    } == {4}
    assert len(report.facts["packed"]) == 8  # four projections of attention in two layers


def test_weights_are_expressions_of_the_files_bytes(four_bits: Path, program: Program) -> None:
    nodes = program.nodes(torch.ops.moec.dequantize.default)
    assert len(nodes) == 2 * (4 + 2) and all(set(n.users) for n in nodes)
    stack = program.weights["model.layers.0.mlp.experts.gate_up_proj_packed"]
    stored = packed.tensors(four_bits)
    gate, up = (
        stored[f"model.layers.0.block_sparse_moe.experts.5.{w}.weight_packed"].view(torch.uint8) for w in ("w1", "w3")
    )
    assert torch.equal(stack.read(5, 6)[0], torch.cat([gate, up])) and stack.dtype == torch.uint8


def test_scales_have_the_precision_of_the_target(four_bits: Path, program: Program) -> None:
    half = open_source(str(four_bits)).capture(torch.float16)
    for found, dtype in ((program, torch.float32), (half, torch.float16)):
        assert {w.dtype for n, w in found.weights.items() if n.endswith("_scale")} == {dtype}


def gptq(folder: Path, to: Path, order: Tensor | None = None) -> Path:
    """The same checkpoint in GPTQ's form."""
    stored, found = packed.tensors(folder), {}
    for name, value in stored.items():
        base, _, part = name.rpartition(".")
        groups = stored.get(f"{base}.weight_scale", value).shape[-1]
        if part == "weight_packed":
            found[f"{base}.qweight"] = value.t().contiguous()
            found[f"{base}.qzeros"] = torch.full((groups, value.shape[0] // 8), 0x77777777, dtype=torch.int32)
            found[f"{base}.g_idx"] = (
                (torch.arange(value.shape[1] * 8) // 16).to(torch.int32) if order is None else order.clone()
            )
        elif part == "weight_scale":
            found[f"{base}.scales"] = value.t().contiguous()
        elif part != "weight_shape":
            found[name] = value
    shutil.copytree(folder, to)
    save_file(found, to / "model.safetensors")
    zoo.edit_config(
        to,
        quantization_config={
            "quant_method": "gptq",
            "bits": 4,
            "group_size": 16,
            "sym": True,
            "desc_act": order is not None,
        },
    )
    return to


def test_gptq_is_the_same_bytes_turned_around(four_bits: Path, program: Program, tmp_path: Path) -> None:
    source = open_source(str(gptq(four_bits, tmp_path / "gptq")))
    again = source.capture()
    assert packed.same_bytes(program, again) == set() and {n.target for n in again.graph.nodes} == {
        n.target for n in program.graph.nodes
    }
    wanted = packed.logits_of(program.run, source)
    assert float((packed.logits_of(source.reference(), source) - wanted).abs().max() / wanted.std()) < TOLERANCE


def test_gptq_with_inputs_in_another_order_is_refused(four_bits: Path, tmp_path: Path) -> None:
    with pytest.raises(MoecError) as caught:
        open_source(str(gptq(four_bits, tmp_path / "gptq", torch.zeros(32, dtype=torch.int32))))
    assert caught.value.code == "M206" and "act-order" in caught.value.what and "desc_act=false" in caught.value.fix


def test_eight_bit_floats_of_tiles_become_plain_weights(copied: Saved) -> None:
    folder = copied("llama")
    stored = packed.tensors(folder)
    for name in [n for n in stored if n.endswith("_proj.weight")]:
        stored[f"{name}_scale_inv"] = (
            torch.rand([-(-size // 16) for size in stored[name].shape], generator=torch.Generator().manual_seed(0))
            + 0.5
        )
        stored[name] = stored[name].to(torch.float8_e4m3fn)
    save_file(stored, folder / "model.safetensors")
    zoo.edit_config(
        folder,
        quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"},
    )
    source = open_source(str(folder))
    found = source.capture()
    name = "model.layers.1.mlp.down_proj.weight"
    tiles = stored[f"{name}_scale_inv"].repeat_interleave(16, 0).repeat_interleave(16, 1)
    assert (
        torch.equal(found.weights[name].load(), stored[name].float() * tiles)
        and source.loaded_bytes > source.size_bytes
    )
    wanted = packed.logits_of(source.reference(), source)
    assert float((packed.logits_of(found.run, source) - wanted).abs().max() / wanted.std()) < TOLERANCE


def test_sizes_are_those_of_the_files_and_of_what_is_loaded(four_bits: Path) -> None:
    source = open_source(str(four_bits))
    assert source.size_bytes == sum(t.nbytes for t in packed.tensors(four_bits).values())
    assert source.loaded_bytes == 2 * sum(p.numel() * 4 for p in zoo.build("mixtral").parameters())


def test_a_layout_that_would_have_to_be_rounded_anew_is_refused(four_bits: Path, program: Program) -> None:
    program = program.clone()
    name = "model.layers.0.mlp.gate.weight"
    coded = open_source(str(four_bits)).origin.checkpoint.weights["model.layers.0.self_attn.q_proj.weight"]  # type: ignore[attr-defined]
    program.weights[name] = rowwise("mixed", lambda t: t[:8] + 0, coded)
    with pytest.raises(MoecError, match="another layout") as caught:
        keep_packed(program)
    assert caught.value.code == "M206" and name in caught.value.what


FORM = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "awq", "bits": 4}, "awq"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"bits": 4}, "an unnamed method"),
    (FORM, "no config_groups"),
    ({**FORM, "format": "float-quantized", "config_groups": {"group_0": GROUP}}, "float-quantized"),
    ({**FORM, "config_groups": {"a": {**GROUP, "input_activations": {"num_bits": 8}}}}, "activations"),
    ({**FORM, "config_groups": {"a": {"weights": {"num_bits": 3}}}}, "3 bits"),
    ({**FORM, "config_groups": {"a": {"weights": {"num_bits": 4, "actorder": "group"}}}}, "actorder"),
    ({**FORM, "config_groups": {"a": {"weights": {"num_bits": 4, "strategy": "tensor"}}}}, "a scale a tensor"),
    ({**FORM, "config_groups": [1]}, "none of this method"),
    ({"quant_method": "gptq", "bits": "4"}, "'4' bits"),
    ({"quant_method": "gptq", "bits": 4, "act_bits": "x"}, "none of this method"),
    ({**FORM, "config_groups": {"a": ["Linear"]}}, "does not say"),
    ({**FORM, "config_groups": {"a": GROUP}, "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
    ({**FORM, "config_groups": {"a": GROUP}, "transform_config": {"config_groups": {}}}, "transform_config"),
]


@pytest.mark.parametrize(("config", "words"), REFUSED)
def test_other_forms_are_refused_by_name(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError) as caught:
        decoder_of({"quantization_config": config}, tmp_path)
    assert caught.value.code == "M206" and words in caught.value.what and "unquantized" in caught.value.fix


def test_a_plain_checkpoint_needs_no_decoder(tmp_path: Path) -> None:
    assert decoder_of({}, tmp_path) is None and decoder_of({"quantization_config": None}, tmp_path) is None


def test_a_config_that_promises_what_the_files_lack(copied: Saved) -> None:
    folder = copied("mixtral")
    zoo.edit_config(
        folder,
        quantization_config={
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": GROUP},
        },
    )
    with pytest.raises(MoecError) as caught:
        open_source(str(folder))
    assert caught.value.code == "M205" and "weight_packed" in caught.value.what
