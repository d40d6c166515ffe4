"""A transformers model with its experts on moec's operators, against what it computed before."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

import moec
from moec.errors import MoecError
from moec.huggingface.accelerate import IMPLEMENTATION
from tests import zoo
from tests.kernels.conftest import Interpret, compiler, interpret

__all__ = ["compiler", "interpret"]
MODELS = ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"]  # plain, normalised, grouped with a bias, interleaved and transposed with biases


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the interpreter has it: the CPU is allowed, where the operators run their references."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def error(model: Any, wanted: torch.Tensor) -> float:
    with torch.no_grad():
        got = model(input_ids=IDS, use_cache=False).logits
    return float((got - wanted).norm() / wanted.norm())


IDS = torch.arange(1, 15).reshape(2, 7)


def eager(model: Any) -> torch.Tensor:
    model.set_experts_implementation("eager")
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", MODELS)
def test_the_model_computes_what_it_did_and_stays_saveable(name: str) -> None:
    model = zoo.build(name)
    wanted, stored = eager(model), {k: v.clone() for k, v in model.state_dict().items()}
    assert moec.accelerate(model) is model and model.config._experts_implementation == IMPLEMENTATION
    assert moec.accelerate(model) is model  # again: nothing is turned twice
    assert error(model, wanted) < 1e-5
    assert all(torch.equal(v, stored[k]) for k, v in model.state_dict().items())
    for module in model.modules():
        if hasattr(module, "down_proj") and hasattr(module, "_moec_gate"):
            module.down_proj.data *= 1.01
    assert error(model, wanted) > 1e-4


def through_kernels(name: str) -> tuple[float, int]:
    """Error of a whole model on the kernels, and how many were started; runs where `interpret` says."""
    from moec.dialect import experts
    from moec.kernels import dispatch, launch

    model, started = zoo.build(name), []
    wanted, start = eager(model), launch.start
    launch.start = lambda kernel, *a, **k: started.append(kernel) or start(kernel, *a, **k)
    experts.register_kernel("cpu")(dispatch.experts)
    try:
        return error(moec.accelerate(model, check=True), wanted), len(started)
    finally:
        launch.start = start


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_on_the_kernels(interpret: Interpret, name: str) -> None:
    found, started = interpret(through_kernels, name)
    assert found < 1e-5 and started == 2 * 3


@pytest.mark.usefixtures("on_cpu")
def test_trains() -> None:
    model = moec.accelerate(zoo.build("qwen3_moe")).train()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    experts = next(m for m in model.modules() if hasattr(m, "_moec_gate"))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in experts.parameters())


@pytest.mark.usefixtures("on_cpu")
def test_is_compiled_in_one_graph() -> None:
    """A block, with the sort and the loop inside of the operator."""
    experts = moec.accelerate(zoo.build("qwen3_moe")).model.layers[0].mlp.experts
    given = torch.randn(7, 32), IDS[:, :2].repeat(4, 1)[:7] % 8, torch.rand(7, 2)
    compiled = torch.compile(experts, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), experts(*given))


@pytest.mark.usefixtures("on_cpu")
def test_rows_that_were_rearranged_are_not_read_as_stored() -> None:
    with pytest.raises(MoecError, match="put this block's rows in order") as caught:
        moec.inspect(moec.accelerate(zoo.build("gpt_oss")))
    assert caught.value.code == "M206"


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(model: Any) -> tuple[str, str]:
        with pytest.raises(MoecError) as caught:
            moec.accelerate(model)
        return caught.value.code, caught.value.what

    model = zoo.build("mixtral")
    before = model.config._experts_implementation
    assert refused(model) == ("M302", "the experts are on cpu, and the kernels run on CUDA")
    assert refused(torch.nn.Linear(2, 2)) == ("M206", "Linear is not a model of transformers")
    assert refused(zoo.build("llama"))[0] == "M206"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert refused(deepcopy(model).double())[0] == "M212"
    monkeypatch.setattr("moec.huggingface.accelerate.find_spec", lambda name: None)
    assert refused(model)[0] == "M301"
    model.model.layers[1].mlp.experts.act_fn = torch.nn.Mish()
    assert refused(model)[0] == "M206"
    model.model.layers[1].mlp.experts.has_post_expert_norm = True
    assert "normalises" in refused(model)[1]
    assert model.config._experts_implementation == before


@pytest.mark.usefixtures("on_cpu")
def test_ids_are_checked_on_request() -> None:
    model = moec.accelerate(zoo.build("mixtral"), check=True)
    experts = model.model.layers[0].mlp.experts
    with pytest.raises(MoecError, match="ids reach from 0 to 8"):
        experts(torch.randn(1, 32), torch.tensor([[0, 8]]), torch.ones(1, 2))
