"""Checkpoints that are quantized already: compiled as they are, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import moec
from moec.errors import MoecError
from moec.huggingface.quantized import decoder_of, keep_packed
from moec.huggingface.source import open_source
from moec.weights import rowwise
from tests import zoo
from tests.huggingface import packed
from tests.huggingface.conftest import Saved

GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16}}


@pytest.fixture(scope="module")
def four_bits(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral in compressed-tensors form."""
    folder = tmp_path_factory.mktemp("packed") / "mixtral"
    packed.write(saved("mixtral"), "quantize(bits=4, group=16, lm_head=16)", folder)
    return folder


def test_it_compiles_into_packed_kernels_and_equals_the_decoded_model(four_bits: Path, tmp_path: Path) -> None:
    report = moec.compile(str(four_bits), out=tmp_path / "engine")
    assert report.comparison.ok and all(step["contract"] == "exact" for step in report.steps)
    assert {b["kernel"] for b in report.facts["blocks"]} == {"QMoE"} and {p["bits"] for p in report.facts["packed"]} == {4}
    assert len(report.facts["packed"]) == 8  # four projections of attention in two layers


def test_weights_are_expressions_of_the_files_bytes(four_bits: Path) -> None:
    program = open_source(str(four_bits)).capture()
    nodes = program.nodes(torch.ops.moec.dequantize.default)
    assert len(nodes) == 2 * (4 + 2) and all(set(n.users) for n in nodes)
    stack = program.weights["model.layers.0.mlp.experts.gate_up_proj_packed"]
    stored = packed.tensors(four_bits)
    gate, up = (stored[f"model.layers.0.block_sparse_moe.experts.5.{w}.weight_packed"].view(torch.uint8) for w in ("w1", "w3"))
    assert torch.equal(stack.read(5, 6)[0], torch.cat([gate, up])) and stack.dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scales_have_the_precision_of_the_target(four_bits: Path, dtype: torch.dtype) -> None:
    program = open_source(str(four_bits)).capture(dtype)
    assert {w.dtype for n, w in program.weights.items() if n.endswith("_scale")} == {dtype}


def test_a_layout_that_would_have_to_be_rounded_anew_is_refused(four_bits: Path) -> None:
    program = open_source(str(four_bits)).capture()
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
    zoo.edit_config(folder, quantization_config={"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": GROUP}})
    with pytest.raises(MoecError) as caught:
        open_source(str(folder))
    assert caught.value.code == "M205" and "weight_packed" in caught.value.what
