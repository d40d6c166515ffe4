"""A transformers model with its experts on moec's operators, against what it computed before."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves

import moec
import moec.dialect
from moec.errors import MoecError
from moec.huggingface.accelerate import IMPLEMENTATION
from tests import zoo
from tests.kernels.conftest import Interpret, compiler, interpret
from tests.kernels.instruments import NeverWaiting, Waits

__all__ = ["compiler", "interpret"]
MODELS = [
    "mixtral",
    "qwen3_moe",
    "deepseek_v3",
    "gpt_oss",
]  # plain, normalised, grouped with a bias, interleaved and transposed with biases


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
    assert moec.accelerate(model) is model
    assert model.config._experts_implementation == f"{IMPLEMENTATION}, else eager"
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


def tuned() -> tuple[float, list[tuple[int, str, int]], list[str]]:
    """Error of a model whose tiles were measured first, the lines that were, and what was said; runs where `interpret`
    says."""
    from moec.kernels import dispatch, tiles, tuning

    model, said, committed = zoo.build("gpt_oss", num_hidden_layers=2), [], dict(tiles.table())
    wanted, measure = eager(model), tuning.tune
    moec.dialect.experts.register_kernel("cpu")(dispatch.experts)
    tuning.tune = lambda blocks, **options: measure(
        blocks, **{**options, "rows": (16,), "tell": said.append}
    )  # large tiles take the interpreter minutes
    try:
        moec.accelerate(model, tune=0.5)
        changed = [key for key, tile in tiles.table().items() if committed.get(key) != tile]
        return error(model, wanted), changed, said
    finally:
        tuning.tune = measure
        tiles.table.cache_clear()
        tiles.tile_for.cache_clear()


def test_tiles_are_measured_on_request(interpret: Interpret) -> None:
    found, changed, said = interpret(tuned)
    assert found < 1e-5 and set(changed) <= {(80, "single", 16)}
    assert len(said) == 1 and "tiles tried" in said[0]


@pytest.mark.usefixtures("on_cpu")
def test_trains() -> None:
    model = moec.accelerate(zoo.build("qwen3_moe")).train()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    experts = next(m for m in model.modules() if hasattr(m, "_moec_gate"))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in experts.parameters())


OTHER = torch.arange(1, 34).reshape(3, 11)


def experts_in(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    """The graph's operators of moec; nothing of what they do inside may be beside them."""
    inside = ("bincount", "sort", "argsort", "nonzero", "_local_scalar_dense", "item", "histc", "_grouped_mm")
    assert not [n.target for n in graph.nodes if str(n.target).startswith(tuple(f"aten.{name}." for name in inside))]
    return [n for n in graph.nodes if str(n.target).startswith("moec.")]


@pytest.mark.usefixtures("on_cpu")
def test_is_compiled_in_one_graph() -> None:
    """A whole model, once for any number of tokens, even where ids are to be checked; what is compiled has one node a
    block."""
    from torch._dynamo.backends.common import aot_autograd

    model, graphs = moec.accelerate(zoo.build("qwen3_moe", num_hidden_layers=1), check=True), []

    def keep(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=aot_autograd(fw_compiler=keep), fullgraph=True, dynamic=True)
    with torch.no_grad():
        for ids in (IDS, OTHER):
            torch.testing.assert_close(
                compiled(input_ids=ids, use_cache=False).logits, model(input_ids=ids, use_cache=False).logits
            )
    assert [[str(n.target) for n in experts_in(g.graph)] for g in graphs] == [["moec.experts.default"]]


@pytest.mark.usefixtures("on_cpu")
def test_is_exported_for_any_number_of_tokens() -> None:
    model, free = (
        moec.accelerate(zoo.build("gpt_oss"), check=True),
        {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},
    )
    shapes = {"input_ids": free, "use_cache": None}
    with torch.no_grad():
        program = torch.export.export(model, (), {"input_ids": IDS, "use_cache": False}, dynamic_shapes=shapes)
        got, wanted = (call(input_ids=OTHER, use_cache=False).logits for call in (program.module(), model))
    torch.testing.assert_close(got, wanted)
    assert [str(n.target) for n in experts_in(program.graph)] == ["moec.experts.default"] * 2


@pytest.mark.usefixtures("on_cpu")
def test_other_implementations_are_not_one_node() -> None:
    """What the two tests above would see of a block that is not accelerated."""
    model = zoo.build("gpt_oss")
    model.set_experts_implementation("grouped_mm")
    program = torch.export.export(model, (), {"input_ids": IDS, "use_cache": False})
    with pytest.raises(AssertionError, match="sort"):
        experts_in(program.graph)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_block_on_cuda_is_exported_without_a_gpu(name: str) -> None:
    """Router and experts on fake tensors of CUDA: nothing looks at a value, nothing leaves the device."""
    model = moec.accelerate(zoo.build(name))
    block = next(m for m in model.modules() if hasattr(m, "experts"))
    with FakeTensorMode(shape_env=ShapeEnv()):
        for module in block.modules():
            for key, value in module._parameters.items():
                module._parameters[key] = torch.nn.Parameter(
                    torch.empty(value.shape, device="cuda"), requires_grad=False
                )
        x = torch.empty(2, 7, 32, device="cuda")
    program = torch.export.export(
        block, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    )
    (node,) = experts_in(program.graph)
    assert node.meta["val"].device.type == "cuda" and isinstance(node.meta["val"].shape[0], torch.SymInt)
    assert {v.device.type for n in program.graph.nodes if isinstance(v := n.meta.get("val"), torch.Tensor)} == {"cuda"}


def watched(name: str, implementation: str) -> float | str:
    """Error of a block, router included, on the kernels, or what waited on its way; runs where `interpret` says."""
    from moec.dialect import experts
    from moec.kernels import dispatch

    model, x = zoo.build(name), torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    block = next(m for m in model.modules() if hasattr(m, "experts"))
    model.set_experts_implementation("eager")
    with torch.no_grad():
        wanted = tree_leaves(block(x))[0]
    experts.register_kernel("cpu")(dispatch.experts)
    moec.accelerate(model).set_experts_implementation(implementation)
    try:
        with NeverWaiting(), torch.no_grad():
            got = tree_leaves(block(x))[0]
    except Waits as found:
        return str(found)
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss"])
def test_nothing_waits(interpret: Interpret, name: str) -> None:
    """Of a block. transformers' own code for attention masks waits, where it is not compiled."""
    found = interpret(watched, name, IMPLEMENTATION)
    assert isinstance(found, float) and found < 1e-5


def test_a_loop_over_experts_waits(interpret: Interpret) -> None:
    assert interpret(watched, "qwen3_moe", "eager") == "aten._local_scalar_dense.default"


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
    assert refused(deepcopy(model).to("meta")) == ("M302", "the experts are on meta, and the kernels run on CUDA")
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
