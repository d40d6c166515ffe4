"""Mixtures whose experts have a capacity: said by one rule where they keep what it keeps, left where they do not."""

from __future__ import annotations

import pytest
import torch

from moec.execution.engine import EagerEngine
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.dialect_call import ROUTE, RouteCall
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from tests.capacities import NEARLY, RULES, Capacity, Left, SecondAlone
from tests.mixtures import VOCABULARY, Mixture, mixture, source_of

DEAR = [pytest.mark.repeats]


def found(way: type[Mixture]) -> tuple[Program, Context]:
    context = Context()
    program, _ = Pipeline.parse("find-moe").all_optional().run(source_of(mixture(way)).capture(), context)
    return program, context


def apart(program: Program, way: type[Mixture], size: tuple[int, int]) -> float:
    ids = torch.randint(0, VOCABULARY, size, generator=torch.Generator().manual_seed(size[1]))
    want = source_of(mixture(way)).reference()(input_ids=ids)["output"]
    return float((EagerEngine(program)(input_ids=ids)["output"] - want).abs().max())


@pytest.mark.parametrize("way", RULES)
def test_said_by_a_capacity_and_equal_at_other_sizes(way: type[Mixture]) -> None:
    program, context = found(way)
    (route,) = program.nodes(ROUTE)
    call = RouteCall(route)
    assert len(moe_nodes(program)) == 1 and call.capacity is not None and not context.misses and program.by_call
    assert all(apart(program, way, size) < 1e-5 for size in ((1, 1), (2, 5), (4, 97)))
    call.replace(capacity=9)
    assert apart(program, way, (4, 97)) > 1e-2


def test_rules_are_told_apart() -> None:
    (capacity,), (left,) = (found(way)[0].nodes(ROUTE) for way in (Capacity, Left))
    assert (capacity.kwargs["order"], capacity.kwargs["drop_first"]) == ("tokens", False)
    assert (left.kwargs["combine"], left.kwargs["drop_first"], left.kwargs["floor"]) == ("renormalize", True, 1e-9)


@pytest.mark.parametrize("way", [pytest.param(w, marks=DEAR if w is SecondAlone else []) for w in NEARLY])
def test_what_is_nearly_that_rule_stays_as_it_is(way: type[Mixture]) -> None:
    program, context = found(way)
    assert not moe_nodes(program) and all("stays as it is" in miss.reason for miss in context.misses)
    assert all(apart(program, way, size) == 0 for size in ((2, 5), (4, 97)))


def test_fuse_moe_leaves_a_router_with_a_capacity() -> None:
    context = Context()
    program, _ = (
        Pipeline.parse("find-moe, fuse-moe").all_optional().run(source_of(mixture(Capacity)).capture(), context)
    )
    assert [miss.reason for miss in context.misses] == ["experts have a capacity, and moec::moe has none"]
    assert len(program.nodes(ROUTE)) == 1
