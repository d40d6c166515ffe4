"""A router is found in every form, computes the model's logits, and what is put in its place is computed with; a shared
one is left alone."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.frontend.export import capture
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.recognition.router_place import RouterPlace, find_router
from moec.recognition.router_region import NotARouter
from tests.routers import (
    EXPERTS,
    HIDDEN,
    KNOWN,
    Block,
    Router,
    by_position,
    captured,
    carved,
    deepseek_v3,
    ernie,
    granite,
    llama4,
    mixtral,
    other_input,
    switch,
)  # fmt: skip

FORMS = ("linear", "addmm", "matmul", "biased")


class Formed(Block):
    """A router whose product is written in another form; with a bias where the form has one."""

    def __init__(self, form: str, router: Router = granite) -> None:
        super().__init__(router)
        self.form, self.shift = form, nn.Parameter(torch.randn(EXPERTS))
        self.turned = nn.Parameter(torch.randn(HIDDEN, EXPERTS) * 0.6)

    def logits(self, rows: Tensor) -> Tensor:
        if self.form == "addmm":
            return torch.addmm(self.shift, rows, self.turned)
        if self.form == "matmul":
            return rows @ self.turned
        return (
            F.linear(rows, self.turned.t()) + self.shift
            if self.form == "biased"
            else F.linear(rows, self.gate.weight, self.shift)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, HIDDEN)
        weights, ids = self.router(self.logits(rows), rows)
        y: Tensor = torch.ops.moec.experts(rows, ids, weights, self.w_in, self.w_out)
        return y.view(x.shape)


def place_of(program: Program) -> RouterPlace:
    return find_router(program, moe_nodes(program)[0])


def logits_of(program: Program, place: RouterPlace, x: Tensor) -> Tensor:
    found: list[Tensor] = []
    run_in_lockstep(
        program,
        [{"x": x}],
        lambda calls: found.append(place.logits(place.activations(calls)[0])) if calls.node is place.product else None,
    )
    return found[0]


def with_router(block: nn.Module, new: Tensor, name: str, turned: bool = False) -> nn.Module:
    """A copy of the module with another router in it."""
    other = deepcopy(block)
    other.get_parameter(name).data.copy_(new.T if turned else new)
    return other


@pytest.mark.parametrize("router", [mixtral, deepseek_v3, ernie, llama4, switch, carved], ids=lambda r: r.__name__)
@pytest.mark.parametrize("passes", ["", "find-moe", "find-moe, fuse-moe"], ids=["as captured", "found", "fused"])
def test_every_router_in_every_state_of_a_program(router: Router, passes: str) -> None:
    block, x = Block(router), other_input()
    program, _ = Pipeline.parse(passes).all_optional().run(captured(block))
    place = place_of(program)
    assert place.stored == "gate.weight" and place.top_k == KNOWN[router][0].top_k and place.experts == EXPERTS
    torch.testing.assert_close(logits_of(program, place, x), block.gate(x.view(-1, HIDDEN)).detach())
    new = torch.randn(EXPERTS, HIDDEN, generator=torch.Generator().manual_seed(3))
    check_new(program, place, new, with_router(block, new, "gate.weight"), x)


@pytest.mark.parametrize("form", FORMS)
def test_products_in_other_forms(form: str) -> None:
    block, x = Formed(form), other_input()
    program = capture(block, {"x": torch.randn(2, 5, HIDDEN)}, {"x": ("batch", "sequence")})
    place = place_of(program)
    assert (place.bias is None) == (form == "matmul")
    torch.testing.assert_close(logits_of(program, place, x), block.logits(x.view(-1, HIDDEN)).detach())
    new = torch.randn(EXPERTS, HIDDEN, generator=torch.Generator().manual_seed(3))
    check_new(
        program,
        place,
        new,
        with_router(block, new, "gate.weight") if form == "linear" else with_router(block, new, "turned", True),
        x,
    )


def check_new(program: Program, place: RouterPlace, new: Tensor, block: nn.Module, x: Tensor) -> None:
    """Put into a run, and written, a router gives what the module that has it gives; the old one does not."""
    with torch.no_grad():
        expected = block(x)

    def put(calls: OperatorCalls) -> None:
        if calls.node is place.product:
            place.put(calls, new)

    assert not torch.allclose(program.run(x=x)["output"], expected, atol=1e-3)
    torch.testing.assert_close(run_in_lockstep(program, [{"x": x}], put)[0][0], expected, rtol=1e-4, atol=1e-5)
    text = program.text()
    place.write(program, new, "other")
    program.check()
    torch.testing.assert_close(program.run(x=x)["output"], expected, rtol=1e-4, atol=1e-5)
    assert program.text() != text and program.weights[place.stored].origin.startswith("other(")


def test_a_square_router_is_turned_as_it_was() -> None:
    """Where shapes do not tell a matrix from its transpose."""

    class Square(nn.Module):
        def __init__(self, turned: bool) -> None:
            super().__init__()
            self.turned, self.gate = turned, nn.Parameter(torch.randn(8, 8))
            self.w_in, self.w_out = nn.Parameter(torch.randn(8, 8, 8) * 0.3), nn.Parameter(torch.randn(8, 8, 4) * 0.3)

        def forward(self, x: Tensor) -> Tensor:
            weights, ids = mixtral(x @ self.gate if self.turned else F.linear(x, self.gate), x)
            y: Tensor = torch.ops.moec.experts(x, ids, weights, self.w_in, self.w_out)
            return y

    for turned in (True, False):
        model, x, new = Square(turned), torch.randn(6, 8), torch.randn(8, 8)
        program = capture(model, {"x": torch.randn(5, 8)}, {"x": ("tokens", None)})
        place = place_of(program)
        check_new(program, place, new, with_router(model, new, "gate", turned), x)


def test_a_router_is_stored_as_wide_as_it_was() -> None:
    program = captured(Block(mixtral).to(torch.bfloat16).float())
    half = captured_half()
    new = torch.full((EXPERTS, HIDDEN), 1 + 2**-12, dtype=torch.float64)
    place = place_of(half)
    assert (place.rounded(half, new) == 1).all() and (place_of(program).rounded(program, new) != 1).all()
    place.write(half, new, "other")
    assert half.weights[place.stored].dtype == torch.bfloat16


def captured_half() -> Program:
    block = Block(granite).to(torch.bfloat16)
    block.router = lambda logits, bias: tuple(
        t if t.dtype == torch.int64 else t.to(torch.bfloat16) for t in granite(logits, bias)
    )
    return capture(block, {"x": torch.randn(2, 5, HIDDEN, dtype=torch.bfloat16)}, {"x": ("batch", "sequence")})


# ---------------------------------------------------------------------- what is left alone
class Shared(Block):
    """Something else reads the router's weight too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.gate(x).mean()


class Twice(Block):
    """Two blocks with one router under two names."""

    def __init__(self, router: Router) -> None:
        super().__init__(router)
        self.second = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.second.weight = self.gate.weight

    def forward(self, x: Tensor) -> Tensor:
        rows = super().forward(x).view(-1, HIDDEN)
        weights, ids = self.router(self.second(rows), rows)
        y: Tensor = torch.ops.moec.experts(rows, ids, weights, self.w_in, self.w_out)
        return y.view(x.shape)


class Scaled(Block):
    """The router's weight is computed from another."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, HIDDEN)
        weights, ids = self.router(F.linear(rows, F.normalize(self.gate.weight)), rows)
        y: Tensor = torch.ops.moec.experts(rows, ids, weights, self.w_in, self.w_out)
        return y.view(x.shape)


@pytest.mark.parametrize(
    ("block", "reason"),
    [(Shared, "too"), (Twice, "too|tied"), (Scaled, "not one linear layer")],
    ids=lambda v: v.__name__ if isinstance(v, type) else "",
)
def test_routers_that_cannot_be_changed_alone(block: Any, reason: str) -> None:
    program = captured(block(granite))
    with pytest.raises(NotARouter, match=reason):
        place_of(program)


def test_a_choice_that_is_not_by_logits() -> None:
    with pytest.raises(NotARouter, match="not chosen by a top-k"):
        place_of(captured(Block(by_position)))
