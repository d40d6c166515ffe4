"""Upcycled layers as they stand in a program, and what the files of another architecture are made of."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from moec.dialect import Routing
from moec.errors import MoecError
from moec.huggingface.saving.containers import Container, Upcycled, choose
from moec.huggingface.saving.upcycled import plan_upcycled, read_upcycled, target_config
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from tests import zoo


@cache
def dense(name: str) -> tuple[Any, Program]:
    """The config of a model, and its program."""
    model: Any = zoo.build(name)
    return model.config, HuggingFaceSource.from_model(model).capture()


def upcycled(name: str, text: str) -> tuple[Any, Program]:
    config, program = dense(name)
    return config, Pipeline.parse(text).run(program.clone())[0]


def container_of(config: Any, program: Program) -> tuple[Container, Upcycled, Any]:
    """The architecture that holds it, its layers, and its new config."""
    model = read_upcycled(program, config)
    container = choose(config, model)
    assert isinstance(container, Container)
    return container, model, target_config(config, container, model)


def test_layers_are_read_with_their_rule_and_sizes() -> None:
    config, program = upcycled("qwen3", "upcycle(experts=4, top_k=2, layers=[1])")
    model = read_upcycled(program, config)
    assert model.dense_layers == [0] and set(model.blocks) == {1} and model.layers == 2
    assert (model.experts, model.intermediate, model.copies, model.dtype) == (4, 48, True, torch.float32)
    assert model.routing == Routing(2)
    weights = program.weights
    assert model.blocks[1].router is weights["model.layers.1.mlp.router.weight"]
    assert model.blocks[1].w_in is weights["model.layers.1.mlp.experts.w_in"]
    assert model.blocks[1].w_out is weights["model.layers.1.mlp.experts.w_out"]


def test_files_hold_the_programs_experts_one_by_one() -> None:
    config, program = upcycled("llama", "upcycle(experts=4, top_k=2, reinit=0.5)")
    container, model, target = container_of(config, program)
    stored = plan_upcycled(program, target, container, model)
    w_in, w_out = (program.weights[f"model.layers.1.mlp.experts.{name}"].load() for name in ("w_in", "w_out"))
    path = "model.layers.1.block_sparse_moe.experts"
    for e in range(4):
        gate, up, down = (stored[f"{path}.{e}.{name}.weight"].load() for name in ("w1", "w3", "w2"))
        assert torch.equal(torch.cat([gate, up]), w_in[e]) and torch.equal(down, w_out[e])
        assert not torch.equal(down, w_out[e - 1]), "experts differ, so that a wrong one would be seen"
    assert target.num_local_experts == 4 and target.architectures == ["MixtralForCausalLM"]


def test_another_pass_in_between_is_refused() -> None:
    config, program = upcycled("llama", "upcycle(experts=4, top_k=2)")
    skipping, _ = Pipeline.parse("skip-experts(alpha=0.5)").run(program)
    with pytest.raises(MoecError, match="not what the upcycle pass leaves") as caught:
        read_upcycled(skipping, config)
    assert caught.value.code == "M206"


def test_a_weight_of_another_shape_is_refused() -> None:
    config, program = upcycled("llama", "upcycle")
    container, model, target = container_of(config, program)
    program.weights["model.norm.weight"] = program.weights["model.layers.0.self_attn.q_proj.weight"]
    with pytest.raises(MoecError, match=r"model\.norm\.weight"):
        plan_upcycled(program, target, container, model)
