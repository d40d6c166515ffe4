"""A proof, or what was held against manifests, as JUnit XML: continuous integration shows one test case a check.

The form is that of the de-facto schema of Jenkins' xUnit plugin: `testsuites > testsuite > testcase > failure | error |
skipped`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from moec.errors import MoecError
from moec.proof.checks.check import Check, Figure
from moec.proof.verification import Verification
from moec.shown import shown

Verdict = Literal["passed", "failure", "error", "skipped"]


@dataclass(frozen=True)
class Case:
    """One check.

    Attributes:
        group: the name of the check.
        name: what was looked at.
        verdict: `skipped` is a limitation that is reported, and does not fail the proof.
        message: what was found.
    """

    group: str
    name: str
    verdict: Verdict
    message: str


def cases(proof: Verification, require_run: bool = False) -> list[Case]:
    """Every figure of every check of a proof; one at least fails exactly when the proof does. One is skipped where the
    engine has not run on what it is for; it fails where a run is required."""
    found = [case for check in proof.checks for case in (_verdict(check), *(_case(check, f) for f in check.figures()))]
    verdict: Verdict = "failure" if require_run else "skipped"
    return found + ([Case("target", proof.target, verdict, f"ran on {proof.elsewhere}")] if proof.elsewhere else [])


def _verdict(check: Check) -> Case:
    """The check itself, whose verdict no table can miss."""
    error = check.error()
    return Case(check.name, "verdict", "failure" if error else "passed", str(error or check))


def _case(check: Check, figure: Figure) -> Case:
    verdict: Verdict = "skipped" if figure.ok is None else "passed" if figure.ok else "failure"
    message = "; ".join(f"{column} {value}".strip() for column, value in figure.values.items())
    return Case(check.name, figure.name, verdict, message or figure.name)


def junit(engine: str, found: Verification | MoecError, require_run: bool = False) -> str:
    """The XML of a proof, or of the error that ended it. `engine` names the suite; `require_run`: an engine that has
    not run on what it is for fails."""
    if isinstance(found, MoecError):
        return _xml("verify", {engine: [Case("verify", found.code, "error", str(found))]})
    return _xml("verify", {engine: cases(found, require_run)})


def junit_of_checks(found: Mapping[str, Mapping[str, MoecError | None]]) -> str:
    """The XML of what was held against manifests: a suite for each, whose cases are what was compared, by name."""

    def case(name: str, error: MoecError | None) -> Case:
        return Case("manifest", name, "failure", str(error)) if error else Case("manifest", name, "passed", "as it was")

    return _xml("check", {manifest: [case(*item) for item in items.items()] for manifest, items in found.items()})


def _xml(verb: str, found: Mapping[str, Sequence[Case]]) -> str:
    suites = ElementTree.Element(
        "testsuites", {"name": f"moec {verb}", **_totals([c for s in found.values() for c in s])}
    )
    for name, checks in found.items():
        suite = ElementTree.SubElement(suites, "testsuite", {"name": _clean(name), **_totals(checks)})
        for check in checks:
            _add(suite, f"moec.{verb}.{check.group}", check)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _totals(checks: Sequence[Case]) -> dict[str, str]:
    kinds = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    counts = {name: str(sum(c.verdict == verdict for c in checks)) for name, verdict in kinds.items()}
    return {"tests": str(len(checks)), **counts}


def _add(suite: ElementTree.Element, group: str, check: Case) -> None:
    case = ElementTree.SubElement(suite, "testcase", {"classname": group, "name": _clean(check.name)})
    message = _clean(check.message)
    if check.verdict == "passed":
        ElementTree.SubElement(case, "system-out").text = message
    else:
        ElementTree.SubElement(case, check.verdict, {"message": message.splitlines()[0]}).text = message


def _clean(text: str) -> str:
    """With the characters that XML 1.0 has no way to write, and those that steer a terminal, spelled out."""
    return shown(text)
