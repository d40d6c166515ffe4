"""`moec::moe` is its parts: projection in float32, `moec::route`, `moec::experts`; and it trains, compiled or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect import Activation, Routing
from tests.dialect.experts_case import ACTIVATIONS, EXPERTS, HIDDEN, Case, case

DEEPSEEK = Routing(3, "sigmoid", groups=3, top_groups=2, group_score="top2", scale=2.5, epsilon=1e-20)
BLOCKS = {
    "mixtral": (Routing(2), Activation(), False),
    "deepseek-v3": (DEEPSEEK, Activation(), False),
    "first code": (
        Routing(1, "sigmoid", groups=3, top_groups=2, group_score="top2", closed_as_zero=True, floor=0.5),
        Activation("gelu"),
        False,
    ),
    "gpt-oss": (Routing(2, combine="softmax"), ACTIVATIONS["gpt-oss"], False),
    "llama4": (Routing(1, "sigmoid", "scores"), Activation(), True),
}


def block(name: str, shape: tuple[int, ...] = (9,)) -> tuple[list[Any], dict[str, Any], Case]:
    """Positional and keyword arguments of `moec::moe`, and the experts' tensors."""
    routing, rule, before = BLOCKS[name]
    given = case(rule, biases=name == "gpt-oss", shape=shape)
    generator = torch.Generator().manual_seed(1)
    router = torch.randn(EXPERTS, HIDDEN, generator=generator, dtype=torch.float64)
    bias = torch.randn(EXPERTS, generator=generator, dtype=torch.float64) if name == "gpt-oss" else None
    selection = (
        torch.randn(EXPERTS, generator=generator, dtype=torch.float64)
        if name in ("deepseek-v3", "first code")
        else None
    )
    arguments = [given.x, router, bias, selection, *given.tensors()[3:]]
    return arguments, {**routing.arguments(), **rule.arguments(), "score_before": before}, given


def naive(name: str, arguments: list[Any], given: Case) -> Tensor:
    """The operator from a plain linear layer, `moec::route` and the naive experts."""
    routing, rule, before = BLOCKS[name]
    logits = F.linear(
        arguments[0].double(), arguments[1].double(), None if arguments[2] is None else arguments[2].double()
    )
    weights, ids = torch.ops.moec.route(logits, arguments[3], **routing.arguments())
    return Case(arguments[0].double(), ids, weights, *given.tensors()[3:]).naive(rule, before)


@pytest.mark.parametrize("shape", [(9,), (2, 3)])
@pytest.mark.parametrize("name", BLOCKS)
def test_it_is_its_parts(name: str, shape: tuple[int, ...]) -> None:
    arguments, options, given = block(name, shape)
    want = naive(name, arguments, given)
    error = [
        float((torch.ops.moec.moe(*arguments, **{**options, "scale": options["scale"] * f}) - want).abs().max())
        for f in (1, 1.001)
    ]
    assert error[0] < 1e-12 < error[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_float32(dtype: torch.dtype) -> None:
    arguments, options, given = block("mixtral", (64,))
    arguments = [t if t is None else t.to(dtype) for t in arguments]
    got = torch.ops.moec.moe(*arguments, **options)
    want = naive("mixtral", [t if t is None else t.double() for t in arguments], given.to(dtype).to(torch.float64))
    rounded = torch.ops.moec.route(F.linear(arguments[0], arguments[1]), None, top_k=2)
    narrow = torch.ops.moec.experts(arguments[0], rounded[1], rounded[0], *arguments[4:])
    assert got.dtype == dtype and (got - want).norm() / want.norm() < 0.02
    assert (got - want).norm() < (narrow - want).norm()


@pytest.mark.parametrize("name", BLOCKS)
def test_gradient(name: str) -> None:
    arguments, options, _ = block(name, (3,))
    leaves = [t.requires_grad_() for i, t in enumerate(arguments) if t is not None and i != 3]

    def call(*given: Tensor) -> Tensor:
        rest = iter(given)
        filled = [t if t is None or i == 3 else next(rest) for i, t in enumerate(arguments)]
        return torch.ops.moec.moe(*filled, **options)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("name", BLOCKS)
def test_operator_is_well_formed(name: str) -> None:
    arguments, options, _ = block(name, (2, 3))
    leaves = tuple(t if t is None else t.requires_grad_() for t in arguments)
    assert set(torch.library.opcheck(torch.ops.moec.moe.default, leaves, options).values()) == {"SUCCESS"}


def losses(step: Callable[[], Tensor], parameters: list[Tensor]) -> list[float]:
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    found = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = step()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(loss.item())
    return found


def test_a_compiled_training_step_is_the_eager_one() -> None:
    found = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)):
        arguments, options, _ = block("deepseek-v3", (2, 5))
        parameters = [arguments[i].requires_grad_() for i in (1, 4, 5)]
        wanted = torch.ones_like(arguments[0])
        step = wrap(
            lambda arguments=arguments, options=options, wanted=wanted: F.mse_loss(
                torch.ops.moec.moe(*arguments, **options), wanted
            )
        )
        found.append(losses(step, parameters))
    eager, compiled = found
    assert eager == sorted(eager, reverse=True) and eager[-1] < 0.9 * eager[0]
    assert compiled == pytest.approx(eager, rel=1e-9)


def test_a_frozen_router_gets_no_gradient() -> None:
    arguments, options, _ = block("mixtral")
    arguments[4].requires_grad_()
    torch.ops.moec.moe(*arguments, **options).sum().backward()
    assert arguments[4].grad.abs().sum() > 0 and arguments[1].grad is None
