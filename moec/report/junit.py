"""A proof as JUnit XML, which continuous integration shows as tests: one case a check.

The form is that of the de-facto schema of Jenkins' xUnit plugin: `testsuites > testsuite > testcase > failure | error |
skipped`.
"""

from __future__ import annotations

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
    checks = [Case("verify", found.code, "error", str(found))] if isinstance(found, MoecError) else []
    checks += cases(found, require_run) if isinstance(found, Verification) else []
    counts = {f"{verdict}s": sum(c.verdict == verdict for c in checks) for verdict in ("failure", "error")}
    counts["skipped"] = sum(c.verdict == "skipped" for c in checks)
    totals = {"tests": str(len(checks)), **{name: str(count) for name, count in counts.items()}}
    suites = ElementTree.Element("testsuites", {"name": "moec verify", **totals})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": _clean(engine), **totals})
    for check in checks:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": f"moec.verify.{check.group}", "name": _clean(check.name)}
        )
        if check.verdict == "passed":
            ElementTree.SubElement(case, "system-out").text = _clean(check.message)
        else:
            ElementTree.SubElement(
                case, check.verdict, {"message": _clean(check.message).splitlines()[0]}
            ).text = _clean(check.message)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    """With the characters that XML 1.0 has no way to write, and those that steer a terminal, spelled out."""
    return shown(text)
