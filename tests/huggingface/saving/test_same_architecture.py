"""Weights of a program that kept its architecture, under the names of its files; what has no place there is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moec import open_source
from moec.errors import MoecError
from moec.huggingface.reading import skeleton
from moec.huggingface.saving.plain_weights import with_plain_weights
from moec.huggingface.saving.same_architecture import check_tied, plan_same
from moec.huggingface.saving.save import save_hf
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from tests.huggingface.conftest import Saved


def captured(saved: Saved, name: str, text: str = "") -> tuple[HuggingFaceSource, Program, Any]:
    """A source, its program after some passes, and its architecture on the meta device."""
    source = open_source(str(saved(name)))
    program = source.capture()
    program = Pipeline.parse(text).run(program)[0] if text else program
    config = source.origin.template.config
    return source, program, skeleton.build(type(source.origin.template), config, torch.float32)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3", "qwen2"])
def test_an_untouched_program_is_planned_as_the_files_that_it_came_from(name: str, saved: Saved) -> None:
    _, program, model = captured(saved, name)
    stored, files = plan_same(program, model), load_file(saved(name) / "model.safetensors")
    assert set(stored) == set(files)
    assert [n for n, value in files.items() if not torch.equal(stored[n].load(), value)] == []


def test_another_experts_rows_are_seen(saved: Saved) -> None:
    _, program, model = captured(saved, "mixtral")
    name = next(n for n in program.weights if n.endswith("down_proj"))
    program.weights[name] = program.weights[name.replace("layers.0", "layers.1")]
    stored, files = plan_same(program, model), load_file(saved("mixtral") / "model.safetensors")
    assert {n for n, value in files.items() if not torch.equal(stored[n].load(), value)} == {
        f"model.layers.0.block_sparse_moe.experts.{e}.w2.weight" for e in range(8)
    }


@pytest.mark.parametrize("name", ["gpt_oss", "llama4"])
def test_experts_that_lie_otherwise_in_the_files_are_refused(name: str, saved: Saved) -> None:
    _, program, model = captured(saved, name)
    with pytest.raises(MoecError, match="layout of their own") as caught:
        plan_same(program, model)
    assert caught.value.code == "M206" and caught.value.fix


def test_a_weight_without_a_place_is_refused(saved: Saved, tmp_path: Path) -> None:
    source, program, _ = captured(saved, "mixtral", "quantize(bits=4, group=16)")
    node = next(n for n in program.graph.nodes if n.op == "get_attr" and "gate.weight" in str(n.target))
    name = program.add_weight("model.layers.0.mlp.another", program.weights[str(node.target)])
    with program.graph.inserting_before(node):
        node.replace_all_uses_with(program.read_weight(name))
    program.finish()
    with pytest.raises(MoecError, match="another"):
        save_hf(program, tmp_path / "out", source)


def test_a_tied_head_of_its_own_is_refused(saved: Saved) -> None:
    source, program, _ = captured(saved, "llama", "quantize(bits=4, group=16, embeddings=16)")
    config = source.origin.template.config
    with pytest.raises(MoecError, match="tied"):
        check_tied(with_plain_weights(program), config)
    check_tied(with_plain_weights(captured(saved, "llama", "quantize(bits=4, group=16)")[1]), config)
