"""A proof as JUnit XML: read back with an XML parser, it fails exactly when the proof does, case by case."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.proof.cache_consistency import Consistency, Way
from moec.proof.checks.cache import CacheConsistency
from moec.proof.checks.check import Check
from moec.proof.checks.decided import DecidedTokens
from moec.proof.checks.experts import ExpertsReached
from moec.proof.checks.lowering import Lowering
from moec.proof.checks.outputs import Outputs
from moec.proof.checks.text import TextQuality
from moec.proof.coverage import ExpertLoad
from moec.proof.decided_tokens import Decided
from moec.proof.evidence import RefusedSize
from moec.proof.exam import Exam
from moec.proof.verification import Verification
from moec.report.junit import cases, junit, junit_of_checks
from tests.moe_module import MoeModel, source_of
from tests.proving import sizes, verify
from tests.report.test_report import QUALITY


@pytest.fixture(scope="module")
def proof() -> Verification:
    source = source_of(MoeModel())
    program = source.capture()
    return verify(source, EagerEngine(program), program)


def swapped(proof: Verification, check: Check) -> Verification:
    """The same proof with this check in the place of the one of its kind, or beside the others."""
    return replace(proof, checks=(*(c for c in proof.checks if type(c) is not type(check)), check))


def broken(proof: Verification, group: str) -> Verification:
    """The same proof with one thing wrong."""
    ways = Way("chunks", (2, 2), 1e-5), Way("token by token", (1, 1), float("nan"))
    comparison, run = proof.comparison, sizes(proof)
    far = replace(comparison, outputs=(replace(comparison.outputs[0], deviation=9.0), *comparison.outputs[1:]))
    missed = replace(proof.coverage, loads=(ExpertLoad("moe", "blocks.0", (5, 0, 3)),))
    wrong: dict[str, Check] = {
        "outputs": Outputs(far),
        "lowering": Lowering(far),
        "sizes": replace(run, refused=(RefusedSize({"batch": 2, "sequence": 7}, "ValueError: <odd> length"),)),
        "cache": CacheConsistency(Consistency(1e-3, ways)),
        "experts": ExpertsReached(missed),
        "decided tokens": DecidedTokens(Decided("float16", 5e-3, 1, 100)),
        "text": TextQuality(replace(QUALITY, exam=Exam("prose.txt", max_kl=0.01))),
    }
    return swapped(proof, wrong[group])


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
        and verdicts["experts blocks.0"] == "passed"
        and verdicts["sizes batch=2, sequence=7"] == "passed"
    )
    skipped = {name for name, verdict in verdicts.items() if verdict == "skipped"}  # what stayed beyond
    assert skipped == {"sizes texts of more than 513 tokens"} and len(verdicts) == len(cases(proof))
    assert set(verdicts.values()) == {"passed", "skipped"}


@pytest.mark.parametrize("group", ["outputs", "lowering", "sizes", "cache", "experts", "decided tokens", "text"])
def test_a_broken_proof_fails_in_its_own_group(proof: Verification, group: str) -> None:
    wrong = broken(proof, group)
    assert not wrong.ok
    verdicts, root = found(wrong)
    failed = [name for name, verdict in verdicts.items() if verdict == "failure"]
    assert failed and all(name.startswith(group) for name in failed)
    assert root.find(".//failure").attrib["message"]  # type: ignore[union-attr]


def test_a_dimension_of_one_is_a_limitation(proof: Verification) -> None:
    run, refused = sizes(proof), (RefusedSize({"batch": 1}, "specialised"),)
    several = tuple(s for s in run.sizes if s["batch"] > 1)
    verdicts, _ = found(swapped(proof, replace(run, sizes=several, refused=refused)))
    assert verdicts["sizes batch=1"] == "skipped" and "failure" not in verdicts.values()
    verdicts, _ = found(swapped(proof, replace(run, refused=refused)))  # it runs a batch of 1 elsewhere
    assert verdicts["sizes batch=1"] == "failure"


def test_an_expert_that_no_input_reached_fails(proof: Verification) -> None:
    wrong = broken(proof, "experts")
    verdicts, root = found(wrong)
    assert verdicts["experts blocks.0"] == "failure"
    assert root.find(".//failure[@message='reached 2 of 3; not reached 1']") is not None
    with pytest.raises(MoecError, match="1 of 3 experts") as caught:
        wrong.require()
    assert caught.value.code == "M104"


def test_a_kept_budget_is_said(proof: Verification) -> None:
    verdicts, root = found(swapped(proof, TextQuality(QUALITY)))
    assert verdicts["text mean KL divergence"] == verdicts["text perplexity ratio"] == "passed"
    over, _ = found(broken(proof, "text"))
    assert (over["text mean KL divergence"], over["text perplexity ratio"]) == ("failure", "passed")
    said = [str(c.text) for c in root.iter("system-out")]
    assert any("0.02, 0.05 allowed" in text for text in said) and any("no bound given" in text for text in said)


def test_an_error_is_an_error() -> None:
    verdicts, root = found(MoecError("M106", "model.onnx \x00 has 3 bytes & <more>", "engine", "compile again"))
    assert verdicts == {"verify M106": "error"} and "<more>" in root.find(".//error").attrib["message"]  # type: ignore[union-attr]


def test_what_steers_a_terminal_is_spelled_out() -> None:
    text = junit("a\x1b[2J", MoecError("M106", "b\x9b \ufffe \ud800", "c", "d"))
    assert ElementTree.fromstring(text) is not None
    assert "a\\x1b[2J" in text and "b\\x9b \\ufffe \\ud800" in text and text.isascii()


def test_manifests_are_suites_and_what_was_compared_their_cases() -> None:
    wrong = MoecError("M106", "the source has changed since: config.json", "model", "compile it anew")
    root = ElementTree.fromstring(junit_of_checks({"a": {"proof": None, "model": wrong}, "b": {"proof": None}}))
    assert root.attrib == {"name": "moec check", "tests": "3", "failures": "1", "errors": "0", "skipped": "0"}
    assert [(suite.attrib["name"], suite.attrib["failures"]) for suite in root] == [("a", "1"), ("b", "0")]
    (failure,) = root.iter("failure")
    assert "config.json" in failure.attrib["message"] and root.find(".//testcase[@name='model']/failure") is failure
