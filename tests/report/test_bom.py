"""The bill of materials of an engine: CycloneDX's own schema takes it, and it names files, model and packages."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from moec import api
from moec.report.bom import bill_of_materials
from moec.report.provenance import packages
from moec.report.report import Report
from tests.report.test_report import QUALITY, with_check

pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib, of the extra attest, is not here")


@pytest.fixture(scope="module")
def report(mixtral_engine: Path) -> Report:
    report = api.read_report(mixtral_engine)
    stated = {**report.account["stated"], "license": "apache-2.0"}
    return replace(report, account={**report.account, "stated": stated}, text_hashes={"text": "0" * 64})


@pytest.fixture(scope="module")
def bill(report: Report, mixtral_engine: Path) -> dict[str, Any]:
    return json.loads(bill_of_materials(report, mixtral_engine))


def problems(bill: dict[str, Any]) -> str:
    """What the schema of CycloneDX 1.6 says of a bill; empty when it takes it."""
    pytest.importorskip("jsonschema", reason="jsonschema, of cyclonedx-python-lib[json-validation], is not here")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return str(JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) or "")


def test_the_schema_takes_it(bill: dict[str, Any]) -> None:
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6") and problems(bill) == ""
    assert "modelCard" in problems({**bill, "metadata": {"component": {**engine(bill), "modelCard": {"made": "up"}}}})


def engine(bill: dict[str, Any]) -> dict[str, Any]:
    return dict(bill["metadata"]["component"])


def test_it_names_the_files_with_their_digests(bill: dict[str, Any], mixtral_engine: Path) -> None:
    found = {file["name"]: file["hashes"][0]["content"] for file in engine(bill)["components"]}
    files = [p for p in mixtral_engine.rglob("*") if p.is_file() and p.name not in ("README.md", "report.html")]
    assert found == {p.relative_to(mixtral_engine).as_posix(): sha256(p.read_bytes()).hexdigest() for p in files}


def test_it_names_what_the_engine_was_made_from(bill: dict[str, Any], report: Report) -> None:
    (made,) = [d for d in bill["dependencies"] if d["ref"] == "engine"]
    assert set(made["dependsOn"]) == {part["bom-ref"] for part in bill["components"]}
    by_type = {part["type"]: part for part in bill["components"]}
    source = {file["name"]: file["hashes"][0]["content"] for file in by_type["machine-learning-model"]["components"]}
    assert source == report.source_hashes and by_type["data"]["hashes"][0]["content"] == "0" * 64
    libraries = {part["name"]: part["version"] for part in bill["components"] if part["type"] == "library"}
    assert libraries == packages(report)
    assert engine(bill)["licenses"] == [{"license": {"id": "Apache-2.0"}}]


def test_the_card_has_the_figures_of_the_proof(report: Report, mixtral_engine: Path) -> None:
    from moec.proof.checks.text import TextQuality

    bill = json.loads(bill_of_materials(with_check(report, TextQuality(QUALITY)), mixtral_engine))
    card = engine(bill)["modelCard"]
    assert card["modelParameters"]["modelArchitecture"] == "MixtralForCausalLM"
    metrics = {(m["type"], m["slice"]): m["value"] for m in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["mean KL divergence in nats", "text"] == "0.02"
    assert float(metrics["max |d|/std to the untouched model", "logits"]) < 1e-3
    assert problems(bill) == ""


def test_it_is_the_same_again_and_another_of_another_engine(
    bill: dict[str, Any], report: Report, mixtral_engine: Path, tmp_path: Path
) -> None:
    assert json.loads(bill_of_materials(report, mixtral_engine)) == bill and "timestamp" not in bill["metadata"]
    (tmp_path / "moec.json").write_text("{}")
    assert (
        json.loads(bill_of_materials(replace(report, artefacts=()), tmp_path))["serialNumber"] != bill["serialNumber"]
    )
