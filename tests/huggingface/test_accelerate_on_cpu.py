"""A transformers model with its experts on moec's kernels for CPUs, against what it computed before."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import moec
from moec.errors import MoecError
from moec.kernels.cpu import pytorch, team
from moec.kernels.cpu.building import stamp
from tests import zoo
from tests.huggingface.test_accelerate import IDS, MODELS, OTHER, experts_in

LIMIT = 2e-6  # of the logits' norm, in float32


@pytest.fixture(autouse=True)
def _installed(cpu_kernels: Path) -> Iterator[None]:
    pytorch._library.cache_clear()
    yield
    pytorch._library.cache_clear()


def pair(name: str, **changes: Any) -> tuple[Any, Any]:
    """The model untouched, and another one accelerated."""
    model = zoo.build(name, **changes)
    model.set_experts_implementation("eager")
    return model, moec.accelerate(deepcopy(model))


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def error(found: Tensor, want: Tensor) -> float:
    return float((found - want).norm() / want.norm())


def ids_of(count: int) -> Tensor:
    return torch.randint(1, 60, (1, count), generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("name", MODELS)
def test_the_model_computes_what_it_did(name: str) -> None:
    untouched, model = pair(name)
    for count in (1, 7, 130):
        assert error(logits(model, ids_of(count)), logits(untouched, ids_of(count))) < LIMIT, count
    block = next(m for m in model.modules() if hasattr(m, "_moec_gate"))
    assert block(torch.empty(0, 32), torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2)).shape == (0, 32)
    kernel, want = torch.ops.moec.experts_on_cpu, logits(untouched, IDS)
    torch.ops.moec.experts_on_cpu = lambda x, ids, *rest, **rule: kernel(x, ids.roll(1, 0), *rest, **rule)
    try:
        assert error(logits(model, IDS), want) > 1e3 * LIMIT  # a wrong routing
    finally:
        torch.ops.moec.experts_on_cpu = kernel


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_in_bfloat16_it_is_nearer_to_float64_than_it_was(name: str) -> None:
    untouched = zoo.build(name).bfloat16()
    untouched.set_experts_implementation("eager")
    model, exact = moec.accelerate(deepcopy(untouched)), deepcopy(untouched).double()
    blocks = [next(m for m in one.modules() if hasattr(m, "down_proj")) for one in (untouched, model, exact)]
    x, ids, weights = torch.randn(40, 32).bfloat16(), torch.randint(0, 4, (40, 2)), torch.rand(40, 2).bfloat16()
    with torch.no_grad():
        before, after = (block(x, ids, weights).double() for block in blocks[:2])
        want = blocks[2](x.double(), ids, weights.double())
        wrong = blocks[1](x, ids.roll(1, 0), weights).double()
    assert error(after, want) < min(error(before, want), 2**-8) < 0.1 < error(wrong, want)
    assert error(logits(model, IDS), logits(untouched, IDS)) < 0.05


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_it_stays_saveable_and_loadable(name: str, tmp_path: Path) -> None:
    untouched, model = pair(name)
    stored, own = untouched.state_dict(), model.state_dict()
    assert all(torch.equal(own[k], stored[k]) and own[k].is_contiguous() for k in stored)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, experts_implementation="eager")
    assert torch.equal(logits(again, IDS), logits(untouched, IDS))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_other_weights_can_be_loaded_into_it(name: str, assign: bool) -> None:
    _, model = pair(name)
    other = deepcopy(zoo.build(name))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.25)
    other.set_experts_implementation("eager")
    state = {k: v.clone() for k, v in other.state_dict().items()}
    assert error(logits(model, IDS), logits(other, IDS)) > 1e3 * LIMIT
    model.load_state_dict(state, assign=assign)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the kernels read what was loaded
        assert error(logits(model, IDS), logits(other, IDS)) < LIMIT
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_another_dtype_is_right_and_what_is_slow_says_so(name: str) -> None:
    untouched, model = pair(name)
    want = logits(untouched, IDS)
    with pytest.warns(RuntimeWarning, match="float64; moec's kernels take bfloat16 or float32"):
        assert error(logits(model.double(), IDS).float(), want) < LIMIT
    with pytest.warns(RuntimeWarning, match="float16; moec's kernels"):
        assert error(logits(model.half(), IDS).float(), want) < 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        untouched.half(), untouched.bfloat16()  # rounds the weights as often
        assert error(logits(model.bfloat16(), IDS).float(), logits(untouched, IDS).float()) < 0.05
        assert error(logits(model.float(), IDS), logits(untouched.float(), IDS)) < LIMIT


def test_weights_that_were_moved_are_right_and_said_to_be_slow() -> None:
    untouched, model = pair("qwen3_moe")
    blocks, want = [m for m in model.modules() if hasattr(m, "_moec_gate")], logits(untouched, IDS)
    for block in blocks:
        block.down_proj.data = block.down_proj.data.mT.contiguous().mT
    with pytest.warns(RuntimeWarning, match="call moec.accelerate\\(model\\) again"):
        assert error(logits(model, IDS), want) < LIMIT
    for block in blocks:
        block._moec_on_cpu = False  # as after a way back from CUDA
    with pytest.warns(RuntimeWarning, match="another device; call moec.accelerate\\(model\\) again"):
        assert error(logits(model, IDS), want) < LIMIT
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert error(logits(moec.accelerate(model), IDS), want) < LIMIT


def test_a_router_in_float32_beside_experts_in_bfloat16_is_what_eager_computes() -> None:
    untouched, model = (m.bfloat16() for m in pair("qwen3_moe"))
    own, other = (next(m for m in one.modules() if hasattr(m, "down_proj")) for one in (model, untouched))
    x, ids, weights = torch.randn(40, 32).bfloat16(), torch.randint(0, 4, (40, 2)), torch.rand(40, 2)
    with torch.no_grad():
        found, want = own(x, ids, weights), other(x, ids, weights)
        assert found.dtype == want.dtype == torch.bfloat16 and error(found.float(), want.float()) < 2**-7
        assert error(own(x, ids, weights.flip(0)).float(), want.float()) > 0.1
        own.float(), other.float()
        with pytest.raises(RuntimeError, match="dtype"):
            other(x, ids, weights)
        with pytest.raises(MoecError, match="w_in is torch\\.float32 on cpu"):
            own(x, ids, weights)
        with torch.autocast("cpu", torch.bfloat16):  # what eager computes is rounded more
            found, want = own(x, ids, weights), other(x, ids, weights)
        assert found.dtype == want.dtype == torch.bfloat16 and error(found.float(), want.float()) < 2**-6


def test_where_pytorch_has_no_openmp_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_of_openmp", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    with pytest.warns(RuntimeWarning, match="not built with OpenMP"):
        moec.accelerate(zoo.build("mixtral"))


def test_matrices_are_turned_in_memory_once_and_keep_their_shapes() -> None:
    untouched, model = pair("gpt_oss")
    places = [p.data_ptr() for p in moec.accelerate(model).parameters()]
    assert [p.data_ptr() for p in moec.accelerate(model).parameters()] == places
    for module in model.modules():
        if hasattr(module, "_moec_gate"):
            assert module.gate_up_proj.mT.is_contiguous() and module.down_proj.mT.is_contiguous()
    assert [p.shape for p in model.parameters()] == [p.shape for p in untouched.parameters()]


def test_numbers_hang_on_no_other_token() -> None:
    _, model = pair("qwen3_moe")
    block = next(m for m in model.modules() if hasattr(m, "_moec_gate"))
    x, weights = torch.randn(9, 32), torch.rand(9, 2)
    ids = torch.stack([torch.randperm(block.num_experts)[:2] for _ in range(9)])
    with torch.no_grad():
        alone = torch.cat([block(x[i : i + 1], ids[i : i + 1], weights[i : i + 1]) for i in range(9)])
        assert torch.equal(block(x, ids, weights), alone)


def test_is_compiled_in_one_graph() -> None:
    """The whole model for any number of tokens, with one node a block; by what goes before PyTorch's code generation,
    which takes a minute."""
    from torch._dynamo.backends.common import aot_autograd

    untouched, model = pair("gpt_oss", num_hidden_layers=1)
    graphs: list[Any] = []

    def keep(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=aot_autograd(fw_compiler=keep), fullgraph=True, dynamic=True)
    for ids in (IDS, OTHER):
        assert error(logits(compiled, ids), logits(untouched, ids)) < LIMIT
    assert [[str(n.target) for n in experts_in(g.graph)] for g in graphs] == [["moec.experts_on_cpu.default"]]


def test_generated_code_calls_the_kernel() -> None:
    """One block through PyTorch's own compiler."""
    untouched, model = pair("gpt_oss", num_hidden_layers=1)
    own, other = (next(m for m in one.modules() if hasattr(m, "down_proj")) for one in (model, untouched))
    x, ids, weights = torch.randn(7, 32), torch.randint(0, 4, (7, 2)), torch.rand(7, 2)
    torch._dynamo.reset()
    with torch.no_grad():
        found, want = torch.compile(own, fullgraph=True)(x, ids, weights), other(x, ids, weights)
        assert error(found, want) < LIMIT
        assert error(own(x, ids.flip(0), weights), want) > 1e3 * LIMIT


def test_what_is_exported_runs_without_the_library() -> None:
    untouched, model = pair("mixtral", num_hidden_layers=1)
    with torch.no_grad():
        program = torch.export.export(model, (), {"input_ids": IDS, "use_cache": False})
    assert [str(n.target) for n in experts_in(program.graph)] == ["moec.experts.default"]
    assert error(program.module()(input_ids=IDS, use_cache=False).logits, logits(untouched, IDS)) < LIMIT


def test_trains() -> None:
    untouched, model = pair("qwen3_moe")
    for one in (untouched, model):
        one.train()
        one(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    wanted = {name: p.grad for name, p in untouched.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys() and any("experts" in name for name in found)
    assert all(error(found[name], grad) < 1e-4 for name, grad in wanted.items() if grad.norm() > 0)


def refused(model: Any) -> MoecError:
    with pytest.raises(MoecError) as caught:
        moec.accelerate(model)
    return caught.value


def test_refusals_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = zoo.build("mixtral")
    before = model.config._experts_implementation
    assert refused(deepcopy(model).double()).fix == "load the model in bfloat16 or float32"
    assert refused(deepcopy(model).to("meta")).code == "M302"
    mixed = deepcopy(model)
    mixed.model.layers[1].mlp.experts.down_proj.data = mixed.model.layers[1].mlp.experts.down_proj.data.bfloat16()
    assert "are bfloat16 and float32" in refused(mixed).what
    monkeypatch.setenv("MOEC_CPU_KERNELS", "/nowhere/libmoec_cpu.so")
    lacking = refused(model)
    assert lacking.code == "M301" and "no such file" in lacking.what and "moec.kernels.cpu.building" in lacking.fix
    broken = tmp_path / "libmoec_cpu.so"
    broken.write_text(stamp())
    monkeypatch.setenv("MOEC_CPU_KERNELS", str(broken))
    assert "does not load" in refused(model).what
    model.model.layers[1].mlp.experts.act_fn = torch.nn.Mish()
    assert refused(model).code == "M206"
    assert model.config._experts_implementation == before
    assert not any(hasattr(m, "_moec_gate") for m in model.modules())
