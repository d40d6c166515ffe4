"""Nothing depends on the order in which programs run, and nothing is read before it is written: in Triton's
interpreter, programs in random order on poisoned memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moec.dialect import Activation, Routing, moe_reference
from moec.kernels import launch
from moec.kernels.packed import ExpertCodes
from moec.kernels.tiles import Tile
from tests.kernels.accuracy import MARGIN, Problem, distance, problem, ratio
from tests.kernels.conftest import Interpret
from tests.kernels.instruments import in_random_order

RULE, ROUTING, SMALL = Activation(), Routing(2), Tile(16, 32, 32)
SEEDS = (0, 1)


def blocks(tokens: int) -> list[Tensor]:
    """The whole block, router included, in two orders; runs where `interpret` says."""
    given = problem(tokens=tokens, experts=4, hidden=32, inner=16)
    found = []
    for seed in SEEDS:
        with in_random_order(seed):
            router = torch.eye(4, 32)
            found.append(launch.moe(given.x, router, None, None, *given.tensors()[3:], routing=ROUTING, rule=RULE))
    return found


@pytest.mark.parametrize("tokens", [5, 40], ids=["few", "many"])
def test_a_block(interpret: Interpret, tokens: int) -> None:
    first, second = interpret(blocks, tokens)
    given = problem(tokens=tokens, experts=4, hidden=32, inner=16)
    exact = moe_reference(
        given.x.double(), torch.eye(4, 32).double(), None, None, given.w_in.double(), given.w_out.double(), None, None,
        ROUTING, RULE, False,
    )  # fmt: skip
    assert torch.equal(first, second) and distance(first, exact) < 1e-6


def experts_of(resident: int) -> list[Tensor]:
    """Packed experts, more pairs than one program sorts, ids that are no experts; runs where `interpret` says."""
    given = wild()
    found = []
    for seed in SEEDS:
        with in_random_order(seed):
            found.append(launch.experts(*given.tensors(), rule=RULE, tile=replace(SMALL, resident=resident)))
    return found


def wild() -> Problem:
    made = problem(tokens=20, experts=4, hidden=32, inner=16, dtype=torch.bfloat16)
    made.ids[::5, 0], made.ids[7] = -1, 4
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (4, 32, 16), dtype=torch.uint8, generator=generator)
    return replace(made, w_in=ExpertCodes(values, (torch.rand(4, 32, 1, generator=generator) * 0.1).bfloat16()))


@pytest.mark.parametrize("resident", [0, 1], ids=["a program a piece", "persistent"])
def test_experts_and_ids_that_are_none(interpret: Interpret, resident: int) -> None:
    first, second = interpret(experts_of, resident)
    given = wild()
    known = (given.ids >= 0) & (given.ids < 4)
    meant = replace(given, ids=given.ids.where(known, 0), weights=given.weights * known)
    assert torch.equal(first, second) and ratio(first, meant, RULE) < MARGIN < ratio(first, given_wrongly(meant), RULE)


def given_wrongly(meant: Problem) -> Problem:
    return replace(meant, weights=meant.weights.flip(0))


def fault(which: str) -> tuple[list[float], list[float]]:
    """What a launch makes of a fault in both orders; runs where `interpret` says."""
    from tests.kernels.device.probes import chain_kernel

    found = []
    for seed in SEEDS:
        with in_random_order(seed):
            out = torch.empty(16)
            if which == "a race":
                out.zero_()
                chain_kernel[(16,)](out, out, 16)
            else:
                chain_kernel[(8,)](torch.arange(16.0), out, 16)
            found.append(out.tolist())
    return found[0], found[1]


def test_a_race_is_seen(interpret: Interpret) -> None:
    """Each program reads what the one before it writes."""
    first, second = interpret(fault, "a race")
    assert first != second


def test_what_nobody_wrote_is_seen(interpret: Interpret) -> None:
    """Half of the programs are missing."""
    first, second = interpret(fault, "a gap")
    assert str(first) == str(second) and [x != x for x in first] == [False] * 8 + [True] * 8
