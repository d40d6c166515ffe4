"""Mixtures and their routers, found by shape."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from moec.errors import MoecError
from moec.pipeline.pipeline import Pipeline
from moec.training.mixtures import find_mixtures, router_parameters
from tests import zoo

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


def test_a_dense_model_has_none() -> None:
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    for model in (zoo.build("llama"), convolution):
        assert find_mixtures(model) == []
        with pytest.raises(MoecError) as caught:
            router_parameters(model)
        assert caught.value.code == "M201"
