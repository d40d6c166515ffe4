"""`fuse-moe`: projection, routing and experts become one `moec::moe` where all read the same rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.dialect import Activation, Routing
from moec.huggingface.source import HuggingFaceSource
from moec.passes.find_moe import FindMoe
from moec.passes.fuse_moe import FuseMoe
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from tests import zoo
from tests.routers import (
    EXPERTS,
    HIDDEN,
    KNOWN,
    Block,
    Router,
    captured,
    deepseek_v3,
    mixtral,
    other_input,
    scaled_per_expert,
)

PIPELINE = Pipeline((FindMoe(), FuseMoe()), frozenset({"find-moe", "fuse-moe"}))
TOLERANCE = 2e-6


def fused(block: nn.Module) -> tuple[Program, Context]:
    context = Context()
    program, _ = PIPELINE.run(captured(block), context)
    return program, context


def error(program: Program, block: nn.Module) -> float:
    x = other_input()
    with torch.no_grad():
        expected = block(x)
    return float((program.run(x=x)["output"] - expected).abs().max() / expected.std())


@pytest.mark.parametrize("router", KNOWN, ids=lambda r: r.__name__)
def test_every_router_fuses(router: Router) -> None:
    block = Block(router)
    program, context = fused(block)
    (moe,) = program.nodes(torch.ops.moec.moe)
    assert not context.misses and not program.nodes(torch.ops.moec.route, torch.ops.moec.experts, torch.ops.aten.linear)
    assert Routing.of(moe.kwargs) == KNOWN[router][0] and Activation.of(moe.kwargs) == Activation()
    assert moe.args[1].target == "gate.weight"  # type: ignore[union-attr]
    assert error(program, block) <= TOLERANCE
    moe.kwargs = {**moe.kwargs, "scale": KNOWN[router][0].scale * 1.001}
    program.graph_module.recompile()
    assert error(program, block) > 100 * TOLERANCE


class Projected(Block):
    """A router whose projection is written in another way."""

    def __init__(self, form: str) -> None:
        super().__init__(deepseek_v3 if form == "single" else mixtral)
        self.form = form
        self.norm = nn.RMSNorm(HIDDEN)
        self.bias = nn.Parameter(torch.randn(EXPERTS))
        self.transposed = nn.Parameter(self.gate.weight.detach().T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, HIDDEN)
        weights, ids = self.router(self.logits(x, rows), self.get_buffer("correction"))
        y: Tensor = torch.ops.moec.experts(rows, ids, weights, self.w_in, self.w_out)
        return y.view(x.shape)

    def logits(self, x: Tensor, rows: Tensor) -> Any:
        if self.form == "single":  # DeepSeek
            return F.linear(rows.type(torch.float32), self.gate.weight.type(torch.float32))
        if self.form == "biased":
            return F.linear(rows, self.gate.weight, self.bias)
        if self.form == "addmm":  # Conv1D
            return torch.addmm(self.bias, rows, self.transposed)
        if self.form == "matmul":
            return rows @ self.transposed + self.bias
        if self.form == "unflattened":  # the experts' rows are flattened, the router's are not until later
            return self.gate(x).view(-1, EXPERTS)
        if self.form == "normed":
            return self.gate(self.norm(rows))
        if self.form == "halved":
            return self.gate(rows.bfloat16().float())
        if self.form == "warm":
            return self.gate(rows) * 2 / 1.7
        return self.gate(rows).tanh()  # "capped"


@pytest.mark.parametrize("form", ["single", "biased", "addmm", "matmul", "unflattened", "warm"])
def test_projections(form: str) -> None:
    block = Projected(form)
    program, context = fused(block)
    (moe,) = program.nodes(torch.ops.moec.moe)
    assert not context.misses and tuple(moe.args[1].meta["val"].shape) == (EXPERTS, HIDDEN)  # type: ignore[union-attr]
    assert (moe.args[2] is not None) is (form in ("biased", "addmm", "matmul"))
    anew = {"addmm": "addmm.router.weight", "matmul": "add.router.weight", "warm": "div.router.weight"}
    assert moe.args[1].target == anew.get(form, "gate.weight")  # type: ignore[union-attr]
    assert error(program, block) <= TOLERANCE


@pytest.mark.parametrize(
    ("form", "reason"),
    [("normed", "its router reads"), ("halved", "its router reads"), ("capped", "not one linear layer")],
)
def test_projections_that_cannot_be_fused(form: str, reason: str) -> None:
    block = Projected(form)
    program, context = fused(block)
    assert not program.nodes(torch.ops.moec.moe) and len(program.nodes(torch.ops.moec.route)) == 1
    assert reason in context.misses[-1].reason and error(program, block) <= TOLERANCE


def test_an_unknown_router_is_left_alone() -> None:
    program, context = fused(Block(scaled_per_expert))
    assert not program.nodes(torch.ops.moec.moe) and context.misses[-1].reason == "its router is not a moec::route"


class Watched(Block):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        logits = self.gate(x.view(-1, HIDDEN))
        weights, ids = mixtral(logits, logits)
        return {
            "output": torch.ops.moec.experts(x.view(-1, HIDDEN), ids, weights, self.w_in, self.w_out),
            "router_logits": logits,
        }


def test_router_logits_as_an_output() -> None:
    block, x = Watched(mixtral), other_input()
    program, _ = fused(block)
    assert len(program.nodes(torch.ops.moec.moe)) == len(program.nodes(torch.ops.aten.linear)) == 1
    for name, expected in block(x).items():
        torch.testing.assert_close(program.run(x=x)[name], expected.detach())


def test_twice_changes_nothing_and_nodes_know_their_source() -> None:
    program, context = fused(Block(mixtral))
    again, _ = PIPELINE.run(program, context)
    assert [s.rewrites for s in again.history[-2:]] == [0, 0] and again.text() == program.text()
    (moe,) = program.nodes(torch.ops.moec.moe)
    assert (
        moe.meta["moec_pass"] == "fuse-moe"
        and "moec.experts" in moe.meta["stack_trace"]
        and tuple(moe.meta["val"].shape[1:]) == (HIDDEN,)
    )


def test_a_fused_program_trains() -> None:
    program, _ = fused(Block(deepseek_v3))
    module, x = program.module(trainable=True), other_input()
    wanted = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.mse_loss(module(x), wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in module.named_parameters() if "correction" not in n
    )


SLOW = [
    pytest.param(name, marks=[pytest.mark.slow] if name not in ("deepseek_v3", "llama4") else [])
    for name in zoo.moe_configs()
]


@pytest.mark.parametrize("name", SLOW)
def test_transformers_models(name: str) -> None:
    source = HuggingFaceSource.from_model(zoo.build(name), cache=False)
    program = source.capture()
    experts = len(program.nodes(torch.ops.moec.experts))
    context = Context()
    program, _ = PIPELINE.run(program, context)
    assert (
        len(program.nodes(torch.ops.moec.moe)) == experts > 0
        and not program.nodes(torch.ops.moec.experts)
        and not context.misses
    )
    inputs = source.sample({"batch": 3, "sequence": 9})
    with torch.no_grad():
        expected = zoo.build(name)(**inputs).logits
    assert float((program.run(**inputs)["logits"] - expected).abs().max() / expected.std()) <= 1e-4
    first = program.nodes(torch.ops.moec.moe)[0]
    first.update_kwarg("scale", 1.1 * Routing.of(first.kwargs).scale)
    program.graph_module.recompile()
    assert float((program.run(**inputs)["logits"] - expected).abs().max() / expected.std()) > 1e-3
