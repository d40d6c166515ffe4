"""A proof as JUnit XML, which continuous integration shows as tests: one case a check.

The form is that of the de-facto schema of Jenkins' xUnit plugin: `testsuites > testsuite > testcase > failure | error |
skipped`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Literal
from xml.etree import ElementTree

from moec.errors import MoecError
from moec.proof.compare import OutputError
from moec.proof.verification import Verification

Verdict = Literal["passed", "failure", "error", "skipped"]


@dataclass(frozen=True)
class Case:
    """One check.

    Attributes:
        group: `outputs`, `sizes`, `coverage`, `consistency` or `quality`.
        name: what was checked.
        verdict: `skipped` says that something was not found out, and does not fail the proof.
        message: what was found.
    """

    group: str
    name: str
    verdict: Verdict
    message: str


def cases(proof: Verification) -> list[Case]:
    """Every check of a proof; one at least fails exactly when the proof does."""
    return [*_outputs(proof), *_sizes(proof), *_coverage(proof), *_consistency(proof), *_quality(proof)]


def junit(engine: str, found: Verification | MoecError) -> str:
    """The XML of a proof, or of the error that ended it. `engine` names the suite."""
    checks = cases(found) if isinstance(found, Verification) else [Case("verify", found.code, "error", str(found))]
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


def _outputs(proof: Verification) -> Iterator[Case]:
    for output in proof.comparison.outputs:
        yield Case(
            "outputs", output.name, "passed" if output.ok else "failure", _of(output, proof.comparison.tolerance)
        )


def _of(output: OutputError, tolerance: float) -> str:
    figures = (
        f"max |d|/std {output.deviation:.3g} of {tolerance:g} allowed, max |d| {output.max_abs:.3g}, cosine "
        f"{output.cosine:.7f}"
    )
    return f"{output.problem}; {figures}" if output.problem else figures


def _sizes(proof: Verification) -> Iterator[Case]:
    for sizes in proof.sizes:
        yield Case("sizes", _named(sizes), "passed", "the engine runs")
    for refused in proof.refused:
        yield Case(
            "sizes",
            _named(refused.sizes),
            "failure" if refused in proof.failures else "skipped",
            f"the engine cannot run: {refused.reason}",
        )


def _named(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "fixed sizes"


def _coverage(proof: Verification) -> Iterator[Case]:
    for load in proof.coverage.loads:
        message = f"{load.reached} of {len(load.assignments)} experts reached"
        missed = f"; not reached: {', '.join(map(str, load.missed))}" if load.missed else ""
        yield Case("coverage", load.module or load.node, "skipped" if load.missed else "passed", message + missed)
    of_text = proof.consistency.decided if proof.consistency else None
    for name, decided in (("decided tokens", proof.decided), ("decided tokens of one text", of_text)):
        if decided is not None:
            yield Case("coverage", name, "failure" if decided.problem else "passed", decided.problem or str(decided))


def _consistency(proof: Verification) -> Iterator[Case]:
    for way in proof.consistency.ways if proof.consistency else ():
        allowed = proof.consistency.tolerance if proof.consistency else 0.0
        message = f"max |d|/std {way.deviation:.3g} of {allowed:g} allowed"
        yield Case("consistency", way.name, "passed" if way.deviation <= allowed else "failure", message)


def _quality(proof: Verification) -> Iterator[Case]:
    quality = proof.quality
    if quality is None:
        return
    budgets = {
        "mean KL divergence": (quality.kl_mean, quality.exam.max_kl),
        "perplexity ratio": (quality.perplexity_ratio, quality.exam.max_perplexity_ratio),
    }
    for name, (figure, allowed) in budgets.items():
        bound = f"{allowed:g} allowed" if allowed is not None else "no bound given"
        kept = isfinite(figure) if allowed is None else figure <= allowed
        yield Case(
            "quality",
            name,
            "passed" if kept else "failure",
            f"{figure:.4g}, {bound}; {quality.exam.text}, {quality.tokens:,} tokens",
        )


def _clean(text: str) -> str:
    """Without the characters that XML 1.0 has no way to write."""
    return "".join(c for c in text if c in "\t\n" or c >= " ")
