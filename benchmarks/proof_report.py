"""What `proof.py` found, for people: one table of detection and false alarms, then every failure with who found it."""

from __future__ import annotations

from typing import Any

from proof_contestants import PEOPLE
from proof_mutants import FOUND
from reporting import under_machine

SHORT = ("moec", "transf.", "optimum", "Polygr.", "tokens")


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    value = {(r["case"], r["who"]): r["value"] for r in report["rows"]}
    unit = {(r["case"], r["who"]): r["unit"] for r in report["rows"]}
    wrong = [r["case"] for r in report["rows"] if r["who"] == "how wrong" and not r["unit"].startswith("NOT")]
    right = list(dict.fromkeys(r["case"] for r in report["rows"] if r["case"].startswith("right: ")))
    approximate = [case for case in right if "quantize" in case]
    exact = [case for case in right if case not in approximate]
    lines = ["| | wrong engines refused | right engines refused | of them approximate |", "|---|---|---|---|"]
    for who in PEOPLE:
        cells = [_count(value, cases, who) for cases in (wrong, exact, approximate)]
        if any(cells):
            lines.append(f"| {who} | " + " | ".join(cells) + " |")
    lines += ["", *_rates(report, value)]
    lines += ["", "| wrong in | report | how wrong | " + " | ".join(SHORT) + " | moec's bisection |"]
    lines.append("|---|---|---|" + "---|" * (len(SHORT) + 1))
    for case in wrong:
        source = report["reports"].get(case, FOUND)
        link = source if source == FOUND else f"[{source}](https://github.com/{source.replace('#', '/issues/')})"
        marks = ["–" if value.get((case, who)) is None else "x" if value[case, who] else "**missed**" for who in PEOPLE]
        place = unit.get((case, "bisection"), "")
        named = f"{'' if value.get((case, 'bisection')) else 'elsewhere: '}{place}" if place else ""
        lines.append(f"| {case} | {link} | {value[case, 'how wrong']:.2g} | " + " | ".join(marks) + f" | {named} |")
    lines += ["", "Right engines that were refused:", ""] if right else []
    lines += [
        f"- {case.removeprefix('right: ')}: {who}, {unit[case, who]}"
        for case in right
        for who in PEOPLE
        if value.get((case, who))
    ]
    lines += _problems(report)
    return under_machine(report, lines)


def _count(value: dict[tuple[str, str], Any], cases: list[str], who: str) -> str:
    """How many of these engines somebody refused; empty where he judged none."""
    said = [value[case, who] for case in cases if value.get((case, who)) is not None]
    return f"{sum(map(bool, said))} of {len(said)}" if said else ""


def _rates(report: dict[str, Any], value: dict[tuple[str, str], Any]) -> list[str]:
    """Bisection, times, and what the compile costs beside another checkout's."""
    places = [v for (_, who), v in value.items() if who == "bisection"]
    lines = [f"- moec's bisection names the layer of {sum(places)} of {len(places)}"] if places else []
    lines.append(f"- everything took {value['everything', 'seconds']} s with {_unit(report, 'everything', 'seconds')}")
    lines += [
        f"- {r['case']}: {r['who']} {r['value']} {r['unit']}" for r in report["rows"] if r["case"][:8] == "compile:"
    ]
    return lines


def _unit(report: dict[str, Any], case: str, who: str) -> str:
    return next(str(r["unit"]) for r in report["rows"] if (r["case"], r["who"]) == (case, who))


def _problems(report: dict[str, Any]) -> list[str]:
    """Who is absent, and mutants that are no wrong engines."""
    absent = [f"- {r['who']}: {r['unit']}" for r in report["rows"] if r["unit"].startswith("absent: ")]
    tame = [f"- {r['case']}: {r['unit']}" for r in report["rows"] if r["who"] == "how wrong" and r["unit"][:3] == "NOT"]
    return [*(["", "Not here:", "", *absent] if absent else []), *(["", "Not wrong:", "", *tame] if tame else [])]
