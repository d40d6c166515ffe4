"""A proof as JUnit XML: read back with an XML parser, it fails exactly when the proof does, case by case."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.proof.cache_consistency import Consistency, Way
from moec.proof.compare import Tolerance
from moec.proof.coverage import ExpertLoad
from moec.proof.quality import Exam
from moec.proof.verification import Refused, Verification, verify
from moec.report.junit import cases, junit
from tests.moe_module import MoeModel, source_of
from tests.report.test_report import QUALITY


@pytest.fixture(scope="module")
def proof() -> Verification:
    source = source_of(MoeModel())
    program = source.capture()
    return verify(source, EagerEngine(program), program, Tolerance.of(torch.float32))


def broken(proof: Verification, group: str) -> Verification:
    """The same proof with one thing wrong."""
    if group == "outputs":
        comparison = proof.comparison
        wrong = replace(comparison.outputs[0], ok=False, deviation=9.0)
        return replace(proof, comparison=replace(comparison, outputs=(wrong, *comparison.outputs[1:])))
    if group == "sizes":
        return replace(proof, refused=(Refused({"batch": 2, "sequence": 7}, "ValueError: <odd> length"),))
    if group == "consistency":
        return replace(
            proof,
            consistency=Consistency(1e-3, (Way("chunks", (2, 2), 1e-5), Way("token by token", (1, 1), float("nan")))),
        )
    return replace(proof, quality=replace(QUALITY, exam=Exam("prose.txt", max_kl=0.01)))


def found(proof: Verification | MoecError) -> tuple[dict[str, str], ElementTree.Element]:
    """`group name` -> verdict of each case, and the whole tree."""
    root = ElementTree.fromstring(junit("engine", proof))
    suite = root[0]
    verdicts = {
        f"{case.attrib['classname'].rpartition('.')[2]} {case.attrib['name']}": next(
            (c.tag for c in case if c.tag != "system-out"), "passed"
        )
        for case in suite
    }
    assert root.attrib["tests"] == suite.attrib["tests"] == str(len(suite))
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert suite.attrib[attribute] == str(list(verdicts.values()).count(kind))
    return verdicts, root


def test_a_good_proof_has_a_case_a_check(proof: Verification) -> None:
    verdicts, _ = found(proof)
    assert (
        verdicts["outputs logits"] == "passed"
        and verdicts["coverage blocks.0"] == "passed"
        and verdicts["sizes batch=2, sequence=7"] == "passed"
    )
    assert set(verdicts.values()) == {"passed"} and len(verdicts) == len(cases(proof))


@pytest.mark.parametrize("group", ["outputs", "sizes", "consistency", "quality"])
def test_a_broken_proof_fails_in_its_own_group(proof: Verification, group: str) -> None:
    wrong = broken(proof, group)
    assert not wrong.ok
    verdicts, root = found(wrong)
    failed = [name for name, verdict in verdicts.items() if verdict == "failure"]
    assert failed and all(name.startswith(group) for name in failed)
    assert root.find(".//failure").attrib["message"]  # type: ignore[union-attr]


def test_what_was_not_found_out_is_skipped(proof: Verification) -> None:
    partly = replace(proof.coverage, loads=(ExpertLoad("moe", "blocks.0", (5, 0, 3)),))
    verdicts, root = found(replace(proof, coverage=partly, refused=(Refused({"batch": 1}, "specialised"),)))
    assert (
        verdicts["coverage blocks.0"] == "skipped"
        and verdicts["sizes batch=1"] == "skipped"
        and "failure" not in verdicts.values()
    )
    assert "not reached: 1" in str(root.find(".//skipped[@message='2 of 3 experts reached; not reached: 1']").text)  # type: ignore[union-attr]


def test_a_kept_budget_is_said(proof: Verification) -> None:
    verdicts, root = found(replace(proof, quality=QUALITY))
    assert verdicts["quality mean KL divergence"] == verdicts["quality perplexity ratio"] == "passed"
    over, _ = found(broken(proof, "quality"))
    assert (over["quality mean KL divergence"], over["quality perplexity ratio"]) == ("failure", "passed")
    said = [str(c.text) for c in root.iter("system-out")]
    assert any("0.02, 0.05 allowed" in text for text in said) and any("no bound given" in text for text in said)


def test_an_error_is_an_error() -> None:
    verdicts, root = found(MoecError("M106", "model.onnx \x00 has 3 bytes & <more>", "engine", "compile again"))
    assert verdicts == {"verify M106": "error"} and "<more>" in root.find(".//error").attrib["message"]  # type: ignore[union-attr]
