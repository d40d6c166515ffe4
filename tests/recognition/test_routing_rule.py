"""A rule is proven by value: no rule that differs in one option passes for the right one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from moec.dialect import Routing
from moec.recognition.router_region import NotARouter, Region, find_region
from moec.recognition.routing_rule import agrees, candidates, identify, probes
from tests.routers import EXPERTS, KNOWN, UNKNOWN, Block, Router, captured


def region_of(router: Router) -> tuple[Region, list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]]:
    program = captured(Block(router))
    (node,) = program.nodes(torch.ops.moec.experts)
    region = find_region(program, *node.args[1:3])  # type: ignore[arg-type]
    assert identify(program, region) == KNOWN[router][0]
    return region, list(probes(program, region))


def neighbours(rule: Routing, biased: bool) -> Iterator[Routing]:
    """Rules that differ from this one in a single option, wherever that makes another function."""
    yield replace(rule, scale=rule.scale * 1.0001)
    yield replace(rule, top_k=rule.top_k + 1)
    yield from (
        replace(rule, score=s)
        for s in ("sigmoid", "sqrt_softplus")
        if s != rule.score and rule.combine not in ("softmax", "ones")
    )
    yield from (
        replace(rule, combine=c, epsilon=0.0, floor=0.0) for c in ("renormalize", "scores", "ones") if c != rule.combine
    )
    if rule.combine == "renormalize" and rule.top_k > 1:
        yield replace(rule, epsilon=1e-6)
        if rule.score != "softmax" or biased:
            yield from (
                replace(rule, epsilon=e, floor=f)
                for e, f in ((0.0, 0.0), (1e-20, 0.0), (0.0, 1e-12))
                if (e, f) != (rule.epsilon, rule.floor)
            )
    if rule.groups > 1:
        yield replace(rule, groups=1)
        yield replace(rule, groups=2, top_groups=1)
        yield replace(rule, top_groups=rule.top_groups + 1)
        yield replace(rule, group_score="max" if rule.group_score == "top2" else "top2")
        if biased:
            yield replace(rule, closed_as_zero=not rule.closed_as_zero)
    elif rule.top_k > 1:  # the best expert is in the best group anyway
        yield replace(rule, groups=2, top_groups=1)


@pytest.mark.parametrize("router", KNOWN, ids=lambda r: r.__name__)
def test_neighbours_are_told_apart(router: Router) -> None:
    _, wanted = region_of(router)
    rule, biased = KNOWN[router]
    assert all(agrees(rule, *probe) for probe in wanted)
    for other in neighbours(rule, biased):
        assert not all(agrees(other, *probe) for probe in wanted), other


@pytest.mark.parametrize("router", KNOWN, ids=lambda r: r.__name__)
def test_candidates_are_few_and_hold_the_rule(router: Router) -> None:
    region, _ = region_of(router)
    tried = list(candidates(region))
    assert KNOWN[router][0] in tried and len(tried) == len(set(tried)) <= 32


def test_the_bias_is_random_and_not_the_models() -> None:
    """A bias of zeros, as a fresh model has it, must not hide that the choice depends on it."""
    router = next(r for r in KNOWN if r.__name__ == "minimax")
    block = Block(router)
    block.get_buffer("correction").zero_()
    program = captured(block)
    (node,) = program.nodes(torch.ops.moec.experts)
    region = find_region(program, *node.args[1:3])  # type: ignore[arg-type]
    assert region.bias is not None and region.experts == EXPERTS
    assert all(bias is not None and bias.abs().min() > 0 for _, bias, _ in probes(program, region))


@pytest.mark.parametrize("router", UNKNOWN, ids=lambda r: r.__name__)
def test_unknown_rules_are_refused(router: Router) -> None:
    program = captured(Block(router))
    (node,) = program.nodes(torch.ops.moec.experts)
    with pytest.raises(NotARouter, match=UNKNOWN[router]):
        identify(program, find_region(program, *node.args[1:3]))  # type: ignore[arg-type]
