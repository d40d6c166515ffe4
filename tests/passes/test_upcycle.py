"""An upcycled model is the dense model, to floating-point tolerance, whatever the router says; and what could not be is
refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.errors import MoecError
from moec.frontend.export import capture
from moec.huggingface.source import HuggingFaceSource
from moec.passes.upcycle import Upcycle
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.recognition.ffn import find_ffns
from moec.weights import lazy as weights
from moec.weights.lazy import Weight
from tests import zoo
from tests.mixtures import EXPERTS, Loop, mixture, source_of

TOLERANCE = 2e-5  # of the reference's standard deviation; a dense model's own rounding is 1e-6
SIZES = {"batch": 2, "sequence": 9}  # capture uses others


@cache
def source(name: str) -> HuggingFaceSource:
    return zoo.source(name, cache=False)


@cache
def dense(name: str) -> Program:
    return zoo.captured(name, cache=False)


@cache
def reference(name: str) -> dict[str, Tensor]:
    return source(name).reference().run(source(name).sample(SIZES))


def error(name: str, program: Program) -> float:
    """Largest difference from the untouched model, in standard deviations of its output."""
    found, wanted = program.run(**source(name).sample(SIZES)), reference(name)
    return max(float((found[k] - v).abs().max() / v.std()) for k, v in wanted.items())


def upcycled(program: Program, text: str, seed: int = 0) -> Program:
    return Pipeline.parse(text).run(program, Context(seed))[0]


def replace_weight(program: Program, ending: str, change: Any) -> Program:
    """The program with the weights whose names end so changed: a deliberately wrong model."""
    wrong = program.clone()
    for name in [n for n in wrong.weights if n.endswith(ending)]:
        wrong.weights[name] = weights.rowwise("wrong", change, wrong.weights[name])
    return wrong


class Layer(nn.Module):
    """One FFN with all biases."""

    def __init__(self, hidden: int = 24, intermediate: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(hidden, intermediate), nn.Linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


def layer_program(layer: nn.Module, dtype: torch.dtype = torch.float32) -> Program:
    return capture(layer.to(dtype), {"x": torch.randn(5, 24, dtype=dtype)}, {"x": ("tokens", None)})


# ---------------------------------------------------------------------- the contract
@pytest.mark.parametrize(
    "text", ["upcycle", "upcycle(experts=4, granularity=2, top_k=2)", "upcycle(experts=4, granularity=4, top_k=8)"]
)
@pytest.mark.parametrize("name", zoo.dense_configs())
def test_equals_the_dense_model(name: str, text: str) -> None:
    program = upcycled(dense(name), text)
    assert len(program.nodes(torch.ops.moec.experts.default)) == 2
    assert error(name, program) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_perturbed_expert_is_seen(name: str) -> None:
    program = replace_weight(upcycled(dense(name), "upcycle"), "experts.w_out", lambda t: t * 1.001)
    assert error(name, program) > TOLERANCE


def test_shards_without_the_factor_are_seen() -> None:
    program = replace_weight(upcycled(dense("llama"), "upcycle(granularity=2)"), "experts.w_out", lambda t: t / 2)
    assert error("llama", program) > 100 * TOLERANCE


def test_the_output_bias_is_counted_once() -> None:
    layer = Layer()
    program = upcycled(layer_program(layer), "upcycle(experts=4, granularity=4, top_k=8)")
    x = torch.randn(50, 24)
    with torch.no_grad():
        expected = layer(x)
    torch.testing.assert_close(program.run(x=x)["output"], expected)
    twice = replace_weight(program, "experts.b_out", lambda t: t * 2)
    assert not torch.allclose(twice.run(x=x)["output"], expected, atol=1e-3)


@pytest.mark.parametrize("top_k", [4, 8])
def test_ties_between_groups_do_not_mix_their_shards(top_k: int) -> None:
    """Equal rows in the router tie every token; rows of zeros make all groups tie at once."""
    layer = Layer()
    program = upcycled(layer_program(layer), f"upcycle(experts=4, granularity=4, top_k={top_k})")
    x = torch.randn(3000, 24)
    with torch.no_grad():
        expected = layer(x)
    for tied in (program, replace_weight(program, "router.weight", torch.zeros_like)):
        torch.testing.assert_close(tied.run(x=x)["output"], expected)


def test_without_the_limit_to_whole_groups_ties_mix_shards() -> None:
    program = upcycled(layer_program(Layer()), "upcycle(experts=4, granularity=4, top_k=8)")
    (route,) = program.nodes(torch.ops.moec.route.default)
    logits = torch.randint(0, 4, (500, 4), generator=torch.Generator().manual_seed(0)).float().repeat_interleave(4, 1)
    assert whole_groups(logits, dict(route.kwargs))
    assert not whole_groups(logits, {**route.kwargs, "groups": 1, "top_groups": 1})


def whole_groups(logits: Tensor, rule: dict[str, Any]) -> bool:
    """Whether every token takes each of the four shards equally often."""
    _, ids = torch.ops.moec.route(logits, None, **rule)
    return bool((F.one_hot(ids % 4, 4).sum(1) == 2).all())


def test_sixteen_bit_logits_are_float32() -> None:
    layer = Layer()
    program = upcycled(layer_program(layer, torch.bfloat16), "upcycle(experts=8, granularity=4, top_k=4)")
    x = torch.randn(2000, 24).bfloat16()
    with torch.no_grad():
        expected = layer.double()(x.double())
    gap = (program.run(x=x)["output"].double() - expected).norm() / expected.norm()
    assert gap < 0.01
    (route,) = program.nodes(torch.ops.moec.route.default)
    assert route.args[0].meta["val"].dtype == torch.float32  # type: ignore[union-attr]


# ---------------------------------------------------------------------- choice, provenance, determinism
@pytest.mark.parametrize(("layers", "chosen"), [("all", [0, 1]), ("every:2", [1]), ([0], [0]), ((1, 0), [0, 1])])
def test_layers(layers: Any, chosen: list[int]) -> None:
    program, (report,) = Pipeline((Upcycle(layers=layers),)).run(dense("llama"))
    blocks = program.nodes(torch.ops.moec.experts.default)
    assert (
        report.rewrites == len(chosen)
        and [next(i for i in (0, 1) if f"layers_{i}_" in str(b.args[3])) for b in blocks] == chosen
    )
    assert error("llama", program) < TOLERANCE


def test_twice_finds_nothing() -> None:
    program = upcycled(dense("llama"), "upcycle")
    assert find_ffns(program) == ([], [])
    with pytest.raises(MoecError) as caught:
        upcycled(program, "upcycle")
    assert caught.value.code == "M103"


def test_a_shared_expert_is_left_alone() -> None:
    program = zoo.captured("deepseek_v3")
    context = Context()
    assert Upcycle().apply(program.clone(), context) == 1  # the dense first layer
    assert ["shared expert" in m.reason for m in context.misses] == [True]


def test_new_nodes_say_where_they_come_from() -> None:
    program = upcycled(dense("qwen3"), "upcycle")
    for node in program.nodes(torch.ops.moec.route.default, torch.ops.moec.experts.default):
        assert node.meta["moec_pass"] == "upcycle" and node.meta["stack_trace"]
        assert "mlp" in list(node.meta["nn_module_stack"].values())[-1][0]
    experts = program.nodes(torch.ops.moec.experts.default)[0]
    assert str(experts.meta["val"].shape) == str(experts.args[0].meta["val"].shape)  # type: ignore[union-attr]


def router(program: Program) -> Tensor:
    return next(w for n, w in program.weights.items() if n.endswith("router.weight")).load()


def test_seeds() -> None:
    one, same, other = (upcycled(dense("llama"), "upcycle", seed) for seed in (0, 0, 1))
    assert one.digest() == same.digest() and torch.equal(router(one), router(same))
    assert one.digest() != other.digest() and not torch.equal(router(one), router(other))
    assert not torch.equal(router(one), router(upcycled(dense("llama"), "upcycle(seed=1)")))
    assert router(one).std().item() == pytest.approx(0.02, rel=0.2)


def test_weights_are_read_only_when_needed() -> None:
    program = layer_program(Layer())
    for name, w in list(program.weights.items()):
        program.weights[name] = Weight(w.shape, w.dtype, w.origin, _unreadable)
    assert len(upcycled(program, "upcycle(granularity=2, reinit=0.5)").weights) == 5


def _unreadable(start: int, stop: int) -> Tensor:
    raise AssertionError("a pass has read a weight")


def test_a_step_of_training_moves_experts_and_router() -> None:
    program = upcycled(dense("llama"), "upcycle(experts=4, granularity=2, top_k=4)")
    module = program.module(trainable=True)
    names = [n for n in dict(module.named_parameters()) if "experts" in n or "router" in n]
    before = {n: module.get_parameter(n).detach().clone() for n in names}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    inputs = source("llama").sample(SIZES)
    losses = []
    for _ in range(3):
        logits = module(*(inputs[i.name] for i in program.inputs))[0]
        loss = F.cross_entropy(logits.flatten(0, 1), inputs["input_ids"].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and len(names) == 6
    # the copies' outputs are equal at first, so the router learns nothing before the second step
    assert all(not torch.equal(before[n], module.get_parameter(n)) for n in names)


# ---------------------------------------------------------------------- Drop-Upcycling
def test_reinit_declares_itself_and_redraws_the_same_neurons() -> None:
    layer = Layer()
    program, (report,) = Pipeline.parse("upcycle(experts=4, reinit=0.25)").run(layer_program(layer))
    assert report.contract == "approximate" and program.history[-1].contract == "approximate"
    assert Upcycle().contract_of() == "exact"
    w_in, w_out = (next(w for n, w in program.weights.items() if n.endswith(e)).load() for e in ("w_in", "w_out"))
    changed = [{i for i in range(32) if not torch.equal(w_in[e, i], layer.fc1.weight[i])} for e in range(4)]
    assert [len(c) for c in changed] == [8] * 4 and len({frozenset(c) for c in changed}) == 4
    for e in range(4):
        assert changed[e] == {i for i in range(32) if not torch.equal(w_out[e, :, i], layer.fc2.weight[:, i])}
    x = torch.randn(20, 24)
    assert not torch.allclose(program.run(x=x)["output"], layer(x), atol=1e-2)


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("upcycle(experts=4, top_k=5)", "more than the 4 experts"),
        ("upcycle(granularity=3, top_k=3)", "not a power of two"),
        ("upcycle(granularity=4, top_k=2)", "not a multiple of granularity"),
        ("upcycle(granularity=32, top_k=32)", "does not divide the 48 neurons"),
        ("upcycle(layers=[0, 7])", "[7]"),
        ("upcycle(layers=[0, 0])", "twice"),
        ("upcycle(layers='some')", "not a choice of layers"),
        ("upcycle(layers='every:0')", "not a choice of layers"),
        ("upcycle(layers=3)", "not a choice of layers"),
        ("upcycle(experts=0)", "at least 1"),
        ("upcycle(experts='8')", "integers"),
        ("upcycle(router_std=0)", "positive"),
        ("upcycle(reinit=1.5)", "share of the neurons"),
    ],
)
def test_what_cannot_be_exact_is_refused(text: str, says: str) -> None:
    with pytest.raises(MoecError) as caught:
        upcycled(dense("llama"), text)
    assert (
        caught.value.code == "M203"
        and says in caught.value.what
        and caught.value.fix
        and "upcycle(" in caught.value.where
    )


def test_experts_of_a_mixture_in_plain_operators_are_left_alone() -> None:
    context = Context()
    _, steps = Pipeline((Upcycle(2, 1),), frozenset({"upcycle"})).run(source_of(mixture(Loop)).capture(), context)
    assert steps[0].rewrites == 0 and len(context.misses) == EXPERTS
    assert {m.reason for m in context.misses} == {"it is an expert of a mixture that is there already"}
