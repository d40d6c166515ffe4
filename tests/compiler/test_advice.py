"""What is advised to whom asks too much was tried: the settings pass, and the layer is the one that costs most."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from moec.compiler import advice
from moec.compiler.compile import compile_source
from moec.compiler.options import Options
from moec.errors import MoecError
from moec.pipeline.passes import Context, Contract, Pass
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.proof.budgets import OverBudget
from moec.weights.lazy import scale
from tests.learned import captured, source

ERROR = OverBudget("M102", "too much", "quantize", "or allow it")


@dataclass(frozen=True)
class ScaleHead(Pass):
    """Approximate by its word; there is nothing milder."""

    contract: ClassVar[Contract] = "approximate"

    def apply(self, program: Program, context: Context) -> int:
        program.weights["model.norm.weight"] = scale(program.weights["model.norm.weight"], 3.0)
        return 1


def options(pipeline: str) -> Options:
    return Options(pipeline=Pipeline.parse(pipeline), verify="full")


def test_the_settings_that_are_named_pass(tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="mean KL divergence") as caught:
        compile_source(source(), options("quantize(bits=2)"), tmp_path / "engine")
    assert caught.value.code == "M102" and list(tmp_path.iterdir()) == []
    named = re.findall(r"(quantize\([^)]*\)) \(", caught.value.fix)
    assert len(named) == 2 and "most of it comes from" in caught.value.fix and "--max-kl" in caught.value.fix
    report = compile_source(source(), options(named[0]), tmp_path / "engine")
    assert report.ok and report.proof.own_quality is not None


def test_the_layer_that_costs_most_is_named() -> None:
    coarse = 'quantize(rules={"*.layers.1.*": 2, "*": 8})'
    found = advice.advised(ERROR, source(), captured(), options(coarse))
    assert "most of it comes from model.layers.1:" in found.fix and found.code == "M102"


def test_of_a_large_model_they_are_only_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "SMALL_BYTES", 1)
    found = advice.advised(ERROR, source(), captured(), options("quantize(bits=2)"))
    assert "not tried" in found.fix and "quantize(bits=8" in found.fix


def test_without_milder_settings_the_error_stays() -> None:
    given = replace(options(""), pipeline=Pipeline((ScaleHead(),)))
    assert advice.advised(ERROR, source(), captured(), given).fix == ERROR.fix
    assert advice.advised(ERROR, source(), captured(), options("upcycle(experts=2, top_k=1)")) is ERROR
