"""A mixture's experts that are cut: exact with all parts, each expert on the tokens that it gets."""

from __future__ import annotations

from functools import cache

import pytest

from moec.errors import MoecError
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import Program
from tests import zoo
from tests.passes.test_carve import TOLERANCE, carved, error, text


@cache
def cut(name: str, active: int) -> Program:
    return carved(name, f"carve(experts=4, active={active})", 4096)[0]


@pytest.mark.parametrize("name", ["mixtral", pytest.param("olmoe", marks=pytest.mark.repeats)])
def test_all_parts_are_the_mixture_and_fewer_are_not(name: str) -> None:
    assert error(name, cut(name, 4)) < TOLERANCE
    assert error(name, cut(name, 2)) > 50 * TOLERANCE
    before, after = (MoeCall(moe_nodes(p)[0]) for p in (zoo.captured(name, cache=False), cut(name, 2)))
    assert after.experts == 4 * before.experts and after.top_k == 2 * before.top_k


def test_experts_are_judged_by_their_own_tokens_and_those_without_are_cut_by_chance() -> None:
    _, layers = carved("mixtral", "carve(experts=4, active=2)", 4096)
    assert all(0 < layer["oracle"] <= layer["carved"] < layer["static"] for layer in layers)
    assert [layer["experts without text"] for layer in layers] == [0, 0]
    program, layers = carved("mixtral", "carve(experts=4, active=4)", 512)
    assert any(layer["experts without text"] > 0 for layer in layers)
    assert error("mixtral", program) < TOLERANCE
    with pytest.raises(MoecError, match="too few for 4 experts"):
        carved("mixtral", "carve(experts=4, active=2)", 128)


def test_what_cannot_be_cut_is_named() -> None:
    dense = zoo.captured("mixtral", cache=False)
    for how, words in (
        ("find-moe, fuse-moe, carve(experts=4, active=2)", "put carve before fuse-moe"),
        ("carve(experts=5, active=2)", "5 parts do not divide"),
    ):
        with pytest.raises(MoecError, match=words):
            Pipeline.parse(how).run(dense, Context(calibration=text()))


def test_its_plan_has_the_same_form() -> None:
    dense, item = zoo.captured("mixtral", cache=False), "carve(experts=4, active=2)"
    plan = Pipeline.parse(item).plan(dense)[-1]
    shapes = {n: w.shape for n, w in plan.program.weights.items()}
    assert plan.most == 2 and shapes == {n: w.shape for n, w in cut("mixtral", 2).weights.items()}
