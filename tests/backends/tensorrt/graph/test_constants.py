"""The graph that a plan is built from is lowered once more as the machine that wrote it did."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from moec.backends.tensorrt.graph.constants import lowered_constants
from moec.backends.tensorrt.graph.export import lowered
from moec.backends.tensorrt.policy import BuildPlan
from moec.errors import MoecError
from tests.moe_module import MoeModel, source_of


def test_the_plan_of_the_file_decides(tmp_path: Path) -> None:
    program, described = source_of(MoeModel()).capture(), tmp_path / "model.plan.json"
    plan = BuildPlan(architectures=(90,), lowering="dense")
    kept = program, lowered(program, plan)[0]
    own = {c.name for c in lowered_constants(program, described, kept)}  # the file is not asked for
    described.write_text(json.dumps({"plan": asdict(plan)}))
    assert {c.name for c in lowered_constants(program.clone(), described, kept)} == own
    described.write_text(json.dumps({"plan": asdict(replace(plan, lowering="gathered"))}))
    assert {c.name for c in lowered_constants(program.clone(), described, kept)} != own


@pytest.mark.parametrize("text", ["", "[]", '{"plan": {"tokens": "many"}}', "{}"])
def test_a_plan_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    described = tmp_path / "model.plan.json"
    described.write_text(text)
    with pytest.raises(MoecError) as caught:
        list(lowered_constants(source_of(MoeModel()).capture(), described))
    assert caught.value.code == "M106"
