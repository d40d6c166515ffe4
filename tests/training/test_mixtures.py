"""Mixtures and their routers, found by shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from moec.errors import MoecError
from moec.pipeline.pipeline import Pipeline
from moec.training.mixtures import find_mixtures, router_parameters
from tests import zoo
from tests.moe_module import MoeModel, source_of

# how many parameters the routers of each model's two layers have
KNOWN = {"mixtral": 2, "qwen2_moe": 2, "deepseek_v3": 1, "gpt_oss": 4, "llama4": 2, "granite_moe": 2}


@pytest.mark.parametrize("kind", KNOWN)
def test_routers_of_each_family(kind: str) -> None:
    model: Any = zoo.build(kind)
    found = router_parameters(model)
    assert len(found) == KNOWN[kind] and all("gate." in n or "router." in n for n in found)
    assert all(dict(model.named_parameters())[n] is p for n, p in found.items())
    assert not any("shared" in name for name in found)
    assert all(len(m.matrices()) == 2 for m in find_mixtures(model))


def test_routers_of_a_program() -> None:
    mixture, _ = Pipeline.parse("upcycle(experts=4, top_k=2)").run(zoo.captured("llama"))
    found = router_parameters(mixture.module(trainable=True))
    assert len(found) == 2 and {tuple(p.shape) for p in found.values()} == {(4, 32)}


def test_routers_of_what_holds_a_program() -> None:
    program = source_of(MoeModel()).capture().module(trainable=True)  # no module holds its routers apart from experts
    held = nn.ModuleDict({"student": program, "teacher": zoo.build("mixtral")})
    found = router_parameters(held)
    student = {"student.blocks.0.router", "student.blocks.1.router"}
    assert found.keys() == student | {f"teacher.model.layers.{k}.mlp.gate.weight" for k in (0, 1)}
    assert all(dict(held.named_parameters())[n] is p for n, p in found.items())


def test_a_temperature_of_no_dimension_is_not_a_weight_of_the_logits() -> None:
    model: Any = zoo.build("mixtral")
    for layer in model.model.layers:
        layer.mlp.gate.temperature = nn.Parameter(torch.tensor(1.0))
    assert set(router_parameters(model)) == {f"model.layers.{k}.mlp.gate.weight" for k in (0, 1)}


def test_a_dense_model_has_none_and_other_experts_are_none() -> None:
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    for model in (zoo.build("llama"), convolution, MoeModel()):  # the last holds each router among its experts
        assert [m.router for m in find_mixtures(model)] == [None] * (2 if isinstance(model, MoeModel) else 0)
        with pytest.raises(MoecError) as caught:
            router_parameters(model)
        assert caught.value.code == "M201"
