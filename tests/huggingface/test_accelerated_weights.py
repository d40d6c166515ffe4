"""Weights that were put in order: nobody reads them in another one, and other models stay what they were."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

import moec
from moec.errors import MoecError
from tests import zoo

IDS = torch.arange(1, 15).reshape(2, 7)
pytestmark = pytest.mark.usefixtures("cpu_kernels")


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def near(found: Tensor, want: Tensor) -> bool:
    return float((found - want).norm() / want.norm()) < 2e-6


@pytest.fixture
def model() -> Any:
    """Its experts' rows are interleaved, so that they are put in order."""
    return zoo.build("gpt_oss")


def test_a_parameter_of_two_blocks_is_put_in_order_once(model: Any) -> None:
    first, second = (layer.mlp.experts for layer in model.model.layers)
    for name in [name for name, _ in second.named_parameters()]:
        setattr(second, name, getattr(first, name))
    want = logits(model)
    assert near(logits(moec.accelerate(model)), want)
    assert near(logits(moec.accelerate(model)), want)
    fresh = zoo.build("gpt_oss")
    fresh.load_state_dict(model.state_dict())
    assert near(logits(fresh), want)


def test_another_implementation_does_not_read_them(model: Any) -> None:
    moec.accelerate(model).set_experts_implementation("eager")
    with pytest.raises(MoecError, match="'eager' reads them as they were") as caught:
        logits(model)
    assert caught.value.code == "M206"
    experts = model.model.layers[0].mlp.experts
    tokens, ids = torch.ones(2, experts.hidden_size), torch.zeros(2, 1, dtype=torch.int64)
    for chosen in ("eager", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(chosen)
        with pytest.raises(MoecError, match="another experts implementation reads them as they were"):
            experts.forward(tokens, ids, torch.ones(2, 1))  # past the module's hooks
    want = logits(zoo.build("gpt_oss"))
    assert near(logits(moec.accelerate(model)), want)  # the way out


@pytest.mark.parametrize("name", ["gpt_oss", "mixtral"])
def test_a_model_that_shares_the_config_stays_what_it_was(name: str) -> None:
    model = zoo.build(name)
    other = type(model)(model.config).eval()
    other.load_state_dict(model.state_dict())
    want = logits(other)
    assert near(logits(moec.accelerate(model)), want) and near(logits(other), want)
    assert not near(logits(other), logits(zoo.build(name, seed=1)))  # must fail: another model


@pytest.mark.parametrize("chosen", ["grouped_mm", "batched_mm", "eager"])
def test_it_keeps_its_own_implementation(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    model: Any = zoo.build("mixtral")
    called: list[str] = []

    def watched(*given: Any) -> Tensor:
        called.append(chosen)
        return right(*given)

    if chosen != "eager":
        right = ALL_EXPERTS_FUNCTIONS._global_mapping[chosen]
        monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS._global_mapping, chosen, watched)
    model.set_experts_implementation(chosen)
    before, written = type(model)(model.config), model.config.to_json_string()
    moec.accelerate(moec.accelerate(model))
    after, copied = type(model)(model.config), type(model)(pickle.loads(pickle.dumps(deepcopy(model.config))))
    for other in (before, after, copied):
        called.clear()
        logits(other)
        assert called == [chosen] * (0 if chosen == "eager" else len(model.model.layers))
    called.clear()
    logits(model)
    assert not called and model.config.to_json_string() == written


def test_it_is_exported_as_before() -> None:
    model: Any = moec.accelerate(zoo.build("mixtral"))
    other = type(model)(model.config).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        exported = torch.export.export(other, (), {"input_ids": IDS, "use_cache": False})
    assert near(logits(exported.module()), logits(model))
    assert not [n for n in exported.graph.nodes if "moec" in str(n.target)]


def test_a_pickle_is_read_where_nothing_was_accelerated(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    want = logits(moec.accelerate(model))
    written = pickle.dumps(deepcopy(model))
    for name in [name for name in ALL_EXPERTS_FUNCTIONS.valid_keys() if "moec-kernels" in name]:
        monkeypatch.delitem(ALL_EXPERTS_FUNCTIONS._global_mapping, name)
    assert torch.equal(logits(pickle.loads(written)), want)
