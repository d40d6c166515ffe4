"""Costs of experts: squared changes of a block's output, and gradients against those of transformers' own model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from moec.errors import MoecError
from moec.execution.choices import choice
from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.execution.memory import available_bytes
from moec.execution.trace import trace
from moec.pipeline.pipeline import Pipeline
from moec.program.decoder_signature import text_inputs
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.quantization import sensitivity
from moec.quantization.grid import Grid
from moec.quantization.rounding import quantize_weight
from moec.quantization.sensitivity import measure_sensitivity
from moec.weights.lazy import from_tensor
from tests import zoo

WIDTHS = (2, 4)


@cache
def model(name: str) -> nn.Module:
    return zoo.build(name)


@cache
def captured(name: str) -> Program:
    return zoo.captured(name)


@cache
def fused(name: str) -> Program:
    return Pipeline.parse("find-moe, fuse-moe").all_optional().run(captured(name))[0]


def windows() -> list[Tensor]:
    return list(torch.randint(0, 90, (3, 2, 15), generator=torch.Generator().manual_seed(0)))


def inputs(of: Program) -> list[dict[str, Tensor]]:
    return [text_inputs(of.inputs, ids) for ids in windows()]


def measured(kind: str, of: Program) -> dict[fx.Node, Tensor]:
    found = measure_sensitivity(of, inputs(of), {n: Grid(4, 8) for n in moe_nodes(of)}, WIDTHS, kind)
    assert found.kind == kind and not found.reason
    return found.costs


def block_outputs(of: Program, node: fx.Node, instead: dict[int, Tensor]) -> Tensor:
    """What a block gives for all tokens with other matrices in their places."""
    found: list[Tensor] = []
    (reader,) = [u for u in node.users if u.op == "call_function"][:1]

    def visit(calls: OperatorCalls) -> None:
        if calls.node is node:
            for place, value in instead.items():
                calls.replace(place, from_tensor(value, "other"))
        if calls.node is reader:
            found.extend(calls.values(reader.args.index(node)))

    run_in_lockstep(of, inputs(of), visit, until=reader)
    return torch.cat([v.reshape(-1, v.shape[-1]) for v in found])


def changes(of: Program, node: fx.Node, e: int, bits: int) -> Tensor:
    """Of a block's output when expert e alone is rounded, `[T, H]`."""
    at = 3 if node.target is torch.ops.moec.experts.default else 4
    instead = {}
    for place in (at, at + 1):
        weight = of.weights[str(node.args[place].target)]  # type: ignore[union-attr]
        rounded, value = quantize_weight(weight, Grid(bits, 8)), weight.load().clone()
        value[e] = torch.ops.moec.dequantize(*(p.load() for p in rounded.parts()), bits=bits)[e]
        instead[place] = value
    return block_outputs(of, node, instead) - block_outputs(of, node, {})


def gradients(layer: int) -> Tensor:
    """Of the summed cross-entropy at a block's output, by transformers' own model: `[T, H]`."""
    found: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        value.requires_grad_(True).register_hook(lambda g: found.append(g.reshape(-1, g.shape[-1])))

    block = model("mixtral").get_submodule(f"model.layers.{layer}.mlp")
    handle = block.register_forward_hook(hook)
    for ids in windows():
        logits = model("mixtral")(ids).logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    handle.remove()
    model("mixtral").zero_grad()
    return torch.cat(found)


@pytest.mark.parametrize(("name", "make"), [("mixtral", captured), ("mixtral", fused), ("gpt_oss", captured)])
def test_errors_are_those_of_the_blocks_output(name: str, make: Callable[[str], Program]) -> None:
    of = make(name)
    node = moe_nodes(of)[1]
    costs = measured("error", of)[node]
    want = torch.stack([changes(of, node, e, bits).square().sum() for e, bits in ((0, 2), (1, 2), (1, 4))])
    torch.testing.assert_close(costs[[0, 1, 1], [0, 0, 1]].float(), want, rtol=1e-3, atol=0)
    assert not torch.allclose(costs[[1, 0, 0], [0, 0, 1]].float(), want, rtol=0.01)


def test_fisher_weights_them_by_the_squared_gradient() -> None:
    of = captured("mixtral")
    for layer, (node, costs) in enumerate(measured("fisher", of).items()):
        want = (gradients(layer).square() * changes(of, node, 3, 2).square()).sum()
        torch.testing.assert_close(costs[3, 0].float(), want, rtol=0.01, atol=0)  # squares are kept in bfloat16


def test_narrower_costs_more() -> None:
    for kind in sensitivity.KINDS:
        assert all(
            bool((c[:, 0] >= c[:, 1]).all()) and bool((c[:, 0] > c[:, 1]).any())
            for c in measured(kind, captured("mixtral")).values()
        )


def test_frequency_counts_tokens() -> None:
    of, counts = captured("mixtral"), dict[str, Tensor]()

    def watch(node: fx.Node, _value: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if node.name in {n.name for n in moe_nodes(of)}:
            _, ids, experts = choice(node, args, named)
            counts[node.name] = counts.get(node.name, torch.zeros(())) + ids.flatten().bincount(minlength=experts)

    for sample in inputs(of):
        trace(of, sample, watch)
    for node, costs in measured("frequency", of).items():
        torch.testing.assert_close(
            costs[:, 0] / costs[:, 0].sum(), counts[node.name].double() / counts[node.name].sum()
        )


def test_without_memory_or_logits_it_is_the_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    of = captured("mixtral")
    blocks = {n: Grid(4, 8) for n in moe_nodes(of)}
    monkeypatch.setattr(sensitivity, "total_bytes", lambda: 1000)
    found = measure_sensitivity(of, inputs(of), blocks, WIDTHS, "fisher")
    assert found.kind == "error" and "GiB" in found.reason
    monkeypatch.undo()
    other = of.clone()
    other.outputs = tuple("scores" if o == "logits" else o for o in of.outputs)
    again = measure_sensitivity(other, inputs(other), {n: Grid(4, 8) for n in moe_nodes(other)}, WIDTHS, "fisher")
    assert again.kind == "error" and "no logits" in again.reason
    for a, b in zip(found.costs.values(), again.costs.values(), strict=True):
        assert torch.equal(a, b)


def test_memory_that_is_free_is_some_of_it() -> None:
    assert 2**20 < available_bytes() < 2**50


def test_infinite_outputs_are_no_costs() -> None:
    of = captured("mixtral").clone()
    name = next(n for n in of.weights if n.endswith("experts.down_proj"))
    value = of.weights[name].load().clone()
    value[:, 0, 0] = float("inf")
    of.weights[name] = from_tensor(value, "broken")
    with pytest.raises(MoecError, match="M105"):
        measure_sensitivity(of, inputs(of), {n: Grid(4, 8) for n in moe_nodes(of)}, WIDTHS, "error")
