"""A carved model with one routed expert a token is a Qwen2-MoE, which needs no code of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moec.huggingface.saving.carved import read_carved
from moec.huggingface.saving.carved_stock import plan_stock
from moec.huggingface.saving.save import save_hf
from tests.huggingface.saving.test_carved import SIZES, TOLERANCE, apart, by_transformers, carved, source

PLAIN = "router=mean-row, compensate=False, refit=False"
STOCK = f"carve(experts=4, shared=2, active=3, {PLAIN})"


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("llama", STOCK),
        pytest.param("qwen2", f"carve(experts=4, active=1, {PLAIN})", marks=pytest.mark.repeats),  # biases; none shared
    ],
)
def test_transformers_says_the_same_with_its_own_class(name: str, how: str, tmp_path: Path) -> None:
    program = carved(name, how)
    assert save_hf(program, tmp_path / "out", source(name)) == "qwen2_moe"
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not list((tmp_path / "out").glob("*.py"))
    said = by_transformers(tmp_path / "out", name)
    assert apart(said, program.run(**source(name).sample(SIZES))["logits"]) < TOLERANCE


def test_the_gate_of_the_shared_experts_loses_no_bit(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    program = carved("llama", STOCK)
    save_hf(program, tmp_path / "out", source("llama"))
    files = load_file(tmp_path / "out" / "model.safetensors")
    gate, down = (files[f"model.layers.0.mlp.shared_expert{n}.weight"] for n in ("_gate", ".down_proj"))
    w_out = program.weights["model.layers.0.mlp.experts.w_out"].load()
    assert not gate.any() and torch.equal(torch.sigmoid(gate[0, 0]) * down, torch.cat([w_out[0], w_out[1]], 1))


@pytest.mark.parametrize(
    ("name", "how", "reason"),
    [
        ("llama", f"carve(experts=4, shared=1, active=3, {PLAIN})", "weighs several routed experts"),
        ("llama", "carve(experts=4, shared=2, active=3, compensate=False, refit=False)", "its router has no biases"),
        ("llama", "carve(experts=4, shared=2, active=3, router=mean-row)", "compensate=False"),
        ("gpt2", f"carve(experts=4, shared=2, active=3, {PLAIN})", "its attention"),
    ],
)
def test_what_it_does_not_hold(name: str, how: str, reason: str) -> None:
    program = carved(name, how)
    found = plan_stock(program, read_carved(program), source(name).origin.template.config, None)
    assert isinstance(found, str) and reason in found
