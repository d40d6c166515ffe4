"""A report is read back as it was written, equal for equal inputs, and notices files that changed."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from moec.compiler.options import Options
from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.frontend.account import Account
from moec.pipeline.pipeline import Pipeline, StepReport
from moec.proof.agreement import Agreement, BlockAgreement, LayerError
from moec.proof.checks.check import Check
from moec.proof.checks.outputs import Outputs
from moec.proof.checks.text import TextQuality
from moec.proof.damage_by_cause import ExpertShift
from moec.proof.evidence import RefusedSize
from moec.proof.exam import Exam
from moec.proof.quality import Quality
from moec.report.artefacts import hash_artefacts
from moec.report.environment import environment
from moec.report.page import html, verdict
from moec.report.report import SCHEMA, Report, step_facts
from tests.moe_module import MoeModel, source_of
from tests.proving import sizes, verify

STEP = StepReport(
    "fuse-moe",
    "exact",
    2,
    1.25,
    "abcd",
    [{"pass_name": "fuse-moe", "node": "linear_3", "reason": "used <b>twice</b>", "source_line": ""}],
)

INSIDE = Agreement(
    70,
    tuple(BlockAgreement(f"blocks.{n}", 0.96, 0.93, (5, 3), (4, 4)) for n in (0, 1)),
    (LayerError("blocks.0", 0.02), LayerError("blocks.1", 0.04)),
)
QUALITY = Quality(
    Exam("prose.txt", max_kl=0.05), "ab", 7, 70, 20.0, 21.0, 0.04879, 0.02, 0.3, 1.5, 0.97, INSIDE, 1000, 4000
)


def make(folder: Path | None = None, seed: int = 0) -> Report:
    """A report of a real verification, made once."""
    found = _made(seed)
    return replace(found, artefacts=hash_artefacts(folder)) if folder else found


@cache
def _made(seed: int) -> Report:
    return make_anew(seed)


def make_anew(seed: int = 0) -> Report:
    source = source_of(MoeModel())
    program = source.capture()
    wrong = source_of(MoeModel(seed=1)).capture() if seed < 0 else program
    found = verify(source, EagerEngine(wrong), program, seed=max(0, seed))
    return Report(
        "tiny",
        Options(pipeline=Pipeline.parse("fuse-moe"), seed=max(0, seed)).to_plain(),
        found,
        steps=step_facts([STEP]),
        environment=environment({"runtime": "1.0"}),
        facts={"blocks": [{"module": "blocks.0", "kernel": "MoE"}]},
    )


def test_reads_back_what_it_wrote(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"123")
    text = make(tmp_path).to_json()
    assert Report.from_json(text).to_json() == text
    (tmp_path / "moec.json").write_text(text)
    again = Report.read(tmp_path / "moec.json")
    assert (
        again.ok
        and again.coverage.complete
        and again.comparison.outputs[0].name == "logits"
        and again.artefacts[0].size_bytes == 3
    )


def with_check(report: Report, check: Check) -> Report:
    """The report with this check in the place of the one of its kind, or beside the others."""
    others = tuple(c for c in report.proof.checks if type(c) is not type(check))
    return replace(report, proof=replace(report.proof, checks=(*others, check)))


def test_the_quality_is_read_back_and_decides() -> None:
    report = with_check(make(), TextQuality(QUALITY))
    again = Report.from_json(report.to_json())
    assert again.quality == QUALITY and again.ok and "perplexity x 1.0500" in again.headline()
    assert not with_check(report, TextQuality(replace(QUALITY, exam=Exam("prose.txt", max_kl=0.01)))).ok
    moved = with_check(report, TextQuality(replace(QUALITY, shift=ExpertShift(60, 0.01, math.inf, 0.02))))
    assert Report.from_json(moved.to_json()).quality == moved.quality


def test_what_a_pass_says_against_itself_stands_in_the_first_line() -> None:
    step = {"name": "carve", "contract": "approximate", "rewrites": 2, "misses": []}
    report = replace(make(), steps=({**step, "facts": {"caution": "carving loses"}},))
    assert report.headline().startswith(f"{report.verdict}: carving loses; ")
    assert verdict(report).startswith("Carving loses; ")
    assert "carving loses" not in replace(report, steps=({**step, "facts": {}}, step)).headline()


def test_a_verdict_is_found_anew_from_the_figures() -> None:
    data = json.loads(make(seed=-1).to_json())
    data["proof"]["ok"] = True
    for check in data["proof"]["checks"].values():
        check["ok"] = True
    assert not Report.from_json(json.dumps(data)).ok
    data["proof"]["checks"] = {}
    assert not Report.from_json(json.dumps(data)).ok  # nothing proves nothing


def test_a_check_that_nobody_knows_counts_as_recorded() -> None:
    data = json.loads(make().to_json())
    for ok in (True, False):
        data["proof"]["checks"]["horoscope"] = {"ok": ok}
        assert Report.from_json(json.dumps(data)).ok is ok


def test_equal_inputs_give_equal_bytes_and_other_seeds_do_not() -> None:
    again = make_anew()
    assert make().to_json() == again.to_json() and html(make()) == html(again)
    assert make().to_json() != make(seed=5).to_json()


def test_nothing_that_changes_between_runs_is_in_it() -> None:
    text = json.dumps(make().to_dict())
    assert "time_ms" not in text and (not platform.node() or platform.node() not in text)


def test_a_failure_can_be_written_too() -> None:
    report = make(seed=-1)
    assert not report.ok and report.headline().startswith("DIFFERS: ") and " of 0.001 allowed" not in report.headline()
    assert report.proof.error is not None and report.headline().endswith(report.proof.error.what)
    endless = replace(report.comparison.outputs[0], deviation=float("inf"), problem="NaN")
    report = with_check(report, Outputs(replace(report.comparison, outputs=(endless,))))
    assert Report.from_json(report.to_json()).comparison.outputs[0].deviation == float("inf")


@pytest.mark.parametrize(
    ("schema", "code", "way_out"), [(SCHEMA + 1, "M201", "upgrade"), (1, "M106", "compile the model again")]
)
def test_another_schema_is_refused_with_the_way_out(schema: int, code: str, way_out: str) -> None:
    other = make().to_json().replace(f'"schema": {SCHEMA}', f'"schema": {schema}')
    with pytest.raises(MoecError, match=f"has schema {schema}") as error:
        Report.from_json(other)
    assert error.value.code == code and way_out in error.value.fix


def test_settings_are_read_back_exactly() -> None:
    """Figures are rounded, settings are not: a compile with the rounded tolerance would not be the same."""
    given = Options(tolerance=0.1234567, text="t", max_kl=0.0123456, inputs=("ids=batch:int64<9",), cache=False)
    given = replace(given, leave_out=("bbox",))
    again = Report.from_json(replace(make(), settings=given.to_plain()).to_json())
    assert Options.of(again.settings) == given
    assert again.opening == {"inputs": ("ids=batch:int64<9",), "cache": False, "leave_out": ("bbox",), "part": ""}


@pytest.mark.parametrize("name", ["target", "pipeline", "layout", "build", "inputs", "cache"])
def test_a_report_without_a_setting_that_others_read_is_refused(name: str) -> None:
    report = make()
    settings = {k: v for k, v in report.settings.items() if k != name}
    with pytest.raises(MoecError, match=name) as error:
        Report.from_json(replace(report, settings=settings).to_json())
    assert error.value.code == "M106"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"schema": 1}',
        '{"schema": 2}',
        '{"schema": 2, "proof": 3}',
        '{"schema": 2, "proof": {"checks": {}}}',
    ],
)
def test_what_is_not_a_report_is_refused(text: str) -> None:
    with pytest.raises(MoecError) as error:
        Report.from_json(text)
    assert error.value.code == "M106"


@pytest.mark.parametrize("left_out", [[None], 3, [{"thing": "input"}]])
def test_an_account_of_another_form_is_refused(left_out: Any) -> None:
    report = make()
    text = replace(report, account={**Account("Tiny").to_plain(), "left_out": left_out}).to_json()
    with pytest.raises(MoecError) as error:
        Report.from_json(text)
    assert error.value.code == "M106"
    assert Report.from_json(replace(report, account=Account("Tiny").to_plain()).to_json()).account["model"] == "Tiny"


@pytest.mark.parametrize(
    ("file", "code"), [("config.json", "M201"), ("model.onnx", "M106"), ("m/1/model.plan", "M106")]
)
def test_a_missing_report_is_refused(file: str, code: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(MoecError) as error:
        Report.read(tmp_path / "moec.json")
    assert error.value.code == code and "moec.json" in str(error.value)


def test_sizes_that_the_engine_refuses_stand_in_the_headline() -> None:
    report = make()
    found = sizes(report.proof)
    several = tuple(s for s in found.sizes if 1 not in s.values())
    short = replace(found, sizes=several, refused=(RefusedSize({"batch": 1, "sequence": 1}, "no"),))
    proof = replace(report.proof, checks=tuple(short if c is found else c for c in report.proof.checks))
    said = replace(report, proof=proof)
    assert said.ok and "cannot run at batch=1, sequence=1" in said.headline() and "cannot run" not in report.headline()
    assert "cannot run at batch=1, sequence=1" in html(said) and "cannot run at batch=1" in str(proof).splitlines()[0]


def test_a_proof_on_other_hardware_is_not_called_verified() -> None:
    report = make()
    assert report.headline().startswith("verified") and report.proof.elsewhere == ""
    for target, ran, where in (
        ("tensorrt:sm90", "onnxruntime:cpu", "proven on the CPU, not yet run on tensorrt:sm90: "),
        ("onnxruntime:cuda,precision=fp16", "onnxruntime:cpu", "proven on the CPU, not yet run on onnxruntime:cuda: "),
        ("onnxruntime:threads=2", "onnxruntime:cpu", ""),
        ("tensorrt:sm90", "tensorrt:sm90", ""),
    ):
        found = replace(report, proof=replace(report.proof, target=target, ran_on=ran))
        assert (
            found.headline().startswith(where or "verified: ")
            and found.to_dict()["proof"]["verdict"] in where + "verified"
        )
        badge = "verdict part" in html(found)
        assert badge is (where != "") and (verdict(found).startswith("Proven on the CPU, not yet run on") is badge)
