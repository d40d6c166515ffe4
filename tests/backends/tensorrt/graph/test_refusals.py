"""Refusals before any work: grids and blocks that TensorRT cannot take, told from shapes."""

from __future__ import annotations

import pytest

from moec.backends.tensorrt.graph.refusals import _shape, refusals
from moec.backends.tensorrt.policy import BuildPlan, choose
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from tests.moe_module import MoeModel, source_of


@pytest.fixture(scope="module")
def program() -> Program:
    return source_of(MoeModel()).capture()


def test_blocks_are_told_from_the_program(program: Program) -> None:
    found = [_shape(node) for node in moe_nodes(program)]
    assert [(s.experts, s.top_k, s.hidden, s.inner, s.item_bytes, s.bits, s.biases) for s in found] == [
        (4, 2, 16, 12, 4, 0, ""),
        (4, 2, 16, 12, 4, 0, "all"),
    ]
    assert all(not hasattr(choose(s, BuildPlan()), "fix") for s in found)


def test_a_lowering_that_cannot_be_had_is_refused_for_every_block(program: Program) -> None:
    assert refusals(program, BuildPlan()) == []
    found = refusals(program, BuildPlan(architectures=(90,), lowering="native"))
    assert len(found) == 2 and all("sm90" in r.reason and r.where and r.fix for r in found)
    assert len(refusals(program, BuildPlan(memory_bytes=1))) == 2


def test_grids_are_refused_too(program: Program) -> None:
    packed, _ = Pipeline.parse("quantize(bits=4, group=16, experts=16, lm_head=4)").run(program, Context(), [])
    found = refusals(packed, BuildPlan())
    assert found and all("blocks of 64 or 128, not of 16" in r.reason for r in found)
