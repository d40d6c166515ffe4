"""Never a wild read or write: every address that a kernel touches lies in a tensor that it was given, whatever the ids
say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moec.dialect import Activation, Routing
from moec.kernels import launch
from moec.kernels.packed import ExpertCodes
from moec.kernels.tiles import Tile
from tests.kernels.accuracy import MARGIN, Problem, problem, ratio
from tests.kernels.conftest import Interpret
from tests.kernels.instruments import bounded

WILD = (-1, 6, 2**31, -(2**40), 2**62)
RULE = Activation()
SMALL = Tile(16, 32, 32)
WAYS = {"few": (9, False, 0), "many": (20, True, 0), "persistent": (20, True, 1)}


def guarded(t: Tensor) -> Tensor:
    """The same values in the middle of memory that is full of NaN, or of ids that are no experts."""
    wild = 255 if t.dtype == torch.uint8 else -3
    around = torch.full((t.numel() + 8192,), wild if not t.is_floating_point() else float("nan"), dtype=t.dtype)
    inner = around[4096 : 4096 + t.numel()].view(t.shape)
    inner.copy_(t)
    return inner


def given(tokens: int, kind: str) -> Problem:
    """Odd widths, so that blocks go beyond every edge; every fourth choice is no expert."""
    made = problem(
        tokens=tokens, top_k=3, hidden=48 if kind == "int4" else 37, inner=21, biases=True, dtype=torch.bfloat16
    )
    ids = made.ids.clone()
    ids.view(-1)[::4] = torch.tensor([WILD[n % len(WILD)] for n in range(len(ids.view(-1)[::4]))])
    w_in: Tensor | ExpertCodes = made.w_in
    if kind == "int4":
        generator = torch.Generator().manual_seed(0)
        values = torch.randint(0, 256, (6, 42, 24), dtype=torch.uint8, generator=generator)
        scale, zero = (
            (torch.rand(6, 42, 3, generator=generator) * 0.02).bfloat16(),
            torch.randint(0, 16, (6, 42, 3), dtype=torch.uint8, generator=generator),
        )
        w_in = ExpertCodes(guarded(values), guarded(scale), guarded(zero))
    else:
        assert isinstance(w_in, Tensor)
        w_in = guarded(w_in.mT.contiguous()).mT if kind == "transposed" else guarded(w_in)
    assert isinstance(made.w_out, Tensor) and made.b_in is not None and made.b_out is not None
    return Problem(
        guarded(made.x),
        guarded(ids),
        guarded(made.weights),
        w_in,
        guarded(made.w_out),
        guarded(made.b_in),
        guarded(made.b_out),
    )


def touched(way: str, kind: str) -> tuple[Tensor, int]:
    """Result, and how many addresses were looked at; runs where `interpret` says."""
    tokens, sort, resident = WAYS[way]
    made = given(tokens, kind)
    with bounded() as seen:
        out = launch.experts(*made.tensors(), rule=RULE, tile=SMALL, sort=sort, resident=resident)
    return out, seen[0]


@pytest.mark.parametrize("kind", ["plain", "transposed", "int4"])
@pytest.mark.parametrize("way", ["few", "many"])
def test_ids_that_are_no_experts(interpret: Interpret, way: str, kind: str) -> None:
    out, seen = interpret(touched, way, kind)
    made = given(WAYS[way][0], kind)
    known = (made.ids >= 0) & (made.ids < 6)
    meant = replace(made, ids=made.ids.where(known, 0), weights=made.weights * known)
    assert seen > 10_000 and out.isfinite().all()
    assert ratio(out, meant, RULE) < MARGIN < ratio(out, replace(meant, ids=(meant.ids + 1) % 6), RULE)
    if way == "many":
        persistent, touched_by_it = interpret(touched, "persistent", kind)
        assert torch.equal(persistent, out) and touched_by_it == seen  # each piece of work is done, and once


def routed_within() -> int:
    """The router's kernels, an odd number of experts, an odd width; runs where `interpret` says."""
    x, router, bias = torch.randn(3, 37), torch.randn(10, 37), torch.zeros(10)
    with bounded() as seen:
        parts = launch.router_parts(guarded(x), guarded(router))
        launch.route(
            guarded(parts.sum(0)), guarded(bias), Routing(3, "sigmoid", groups=5, top_groups=2, group_score="top2")
        )
    return seen[0]


def test_the_router(interpret: Interpret) -> None:
    assert interpret(routed_within) > 1000


def beyond(how: str) -> str:
    """What the watch says of launches that were given a wrong size; runs where `interpret` says."""
    made = given(9, "plain")
    order, w_in = launch.align(made.ids, 6, 16), made.w_in
    assert isinstance(w_in, Tensor)
    call = launch._Call(
        made.x[:8] if how == "a token too few" else made.x,
        made.ids,
        made.weights,
        order,
        False,
        RULE,
        False,
        16,
        SMALL,
        None,
        6,
    )
    try:
        with bounded():
            launch._rows_in(call, w_in[:5] if how == "an expert too few" else w_in, made.b_in)
    except Exception as error:
        return repr(error)
    return "nothing"


@pytest.mark.parametrize(
    ("how", "found"), [("an expert too few", "Outside"), ("a token too few", "Outside"), ("as it is", "nothing")]
)
def test_what_is_outside_is_seen(interpret: Interpret, how: str, found: str) -> None:
    """Past the checks, the kernels trust their arguments: the watch must see it."""
    assert found in interpret(beyond, how)
