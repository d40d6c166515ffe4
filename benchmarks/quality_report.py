"""What `quality.py` found, for people: the table, what was aimed at and what papers claim, each with the figures that
decide it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

FIGURES = ("kl", "perplexity ratio", "top-1", "router set", "bytes")
CLAIMS = """EAC-MoE (arXiv 2508.01625), 3.03 bits an expert and PESF 0.3, four models of 14 to 47 B parameters,
experts 97 % of the bytes: bytes 4.92, 4.90, 4.55 and 4.28 times fewer than in 16 bits; 0.96, 1.31, 0.29 and 1.99
points of zero-shot accuracy lost (mean 1.14). Its claim is 4 to 5 times, under 1.25 points. No zero-shot tasks are
run here: top-1 agreement and perplexity stand in their place."""
MIX, BY_USE = "3.0 bits of 2 and 4 by fisher", "3.0 bits of 2 and 4 by frequency"
PARTS = ("experts alone: ", "")


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = report["rows"]
    value = {(r["case"], r["who"]): r["value"] for r in rows if r["who"] in (*FIGURES, "spread", "seeds", "seconds")}
    untouched = report["bytes"]
    lines = [
        "| | KL, nats a token (seeds) | perplexity | top-1 | router sets | bytes | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in dict.fromkeys(case for case, _ in value):
        kl, ratio, top, sets, size = (value[case, f] for f in FIGURES)
        same_sets = "–" if math.isnan(sets) else f"{100 * sets:.2f} %"
        lines.append(
            f"| {case} | {kl:.5f} ± {value[case, 'spread']:.5f} ({value[case, 'seeds']}) | × {ratio:.4f} "
            f"| {100 * top:.2f} % | {same_sets} "
            f"| {untouched / size:.2f} times fewer | {value[case, 'seconds']:.0f} |"
        )
    built = [r for r in rows if r["who"] == "file over arithmetic"]
    lines += [
        "",
        *(
            f"- engine, {r['case']}: the file has {r['value']} of the bytes that codes, scales and the rest come to"
            for r in built
        ),
    ]
    lines += ["", *(f"- {r['case']}: left out, {r['value']}" for r in rows if r["who"] == "left out")]
    lines += ["", "Aimed at:", "", *(f"- {line}" for line in report["targets"])]
    lines += ["", "What papers claim, as an order:", "", *(f"- {line}" for line in report["orders"]), "", CLAIMS]
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    head = f"{report['machine']['cpu']}, {report['machine']['cores']} cores; {versions}"
    return "\n".join([head, "", report["about"], "", *lines])


class Judge:
    """Sentences about the rows of a report; a sentence about a row that is not there says so."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.value = {(r["case"], r["who"]): r["value"] for r in rows}
        self.said: list[str] = []

    def say(
        self, what: str, judged: Callable[[], tuple[bool, str]], words: tuple[str, str] = ("reached", "NOT reached")
    ) -> None:
        try:
            ok, figures = judged()
        except KeyError as missing:
            self.said.append(f"{what}: not measured, there is no row {missing.args[0][0]!r}")
        else:
            self.said.append(f"{what}: {words[not ok]}, {figures}")

    def least(self, part: str) -> str:
        """The name of the case with the lowest KL among those that begin so."""
        return min(
            (c for c, w in self.value if c.startswith(part) and w == "kl"),
            key=lambda c: float(self.value[c, "kl"]),
            default=part,
        )

    def limit(self, case: str, figure: str, limit: float, what: str) -> None:
        """A figure within a limit: from below for agreements, from above for the rest."""
        below = figure in ("kl", "perplexity ratio")
        self.say(
            f"{case}: {what}", lambda: ((self.value[case, figure] <= limit) == below, f"{self.value[case, figure]:.5f}")
        )

    def ratio(
        self, what: str, case: str, other: str, limit: float, words: tuple[str, str] = ("reached", "NOT reached")
    ) -> None:
        """A KL that is at most so many times another's; the ratio of the means, and the least and the largest of the
        seeds'."""

        def judged() -> tuple[bool, str]:
            found, against = self.value[case, "kl"], self.value[other, "kl"]
            each, others = self.value[case, "kl of each seed"], self.value[other, "kl of each seed"]
            ratios = [
                a / b
                for a, b in zip(
                    each * (len(others) if len(each) == 1 else 1),
                    others * (len(each) if len(others) == 1 else 1),
                    strict=False,
                )
            ]
            seeds = f", seeds {min(ratios):.2f} to {max(ratios):.2f}" if len(ratios) > 1 else ""
            return found <= limit * against, f"{found:.5f} and {against:.5f}, {found / against:.2f} of it{seeds}"

        self.say(what, judged, words)

    def more_sets(self, case: str) -> None:
        """Router sets and KL with calibrated routers beside those without."""
        plain, value = case.removesuffix(" + router"), self.value

        def judged() -> tuple[bool, str]:
            sets = [100 * value[c, "router set"] for c in (plain, case)]
            kls = [value[c, "kl"] for c in (plain, case)]
            return sets[1] > sets[0], f"{sets[0]:.2f} to {sets[1]:.2f} %, KL {kls[0]:.5f} to {kls[1]:.5f}"

        self.say(f"{case}: more router sets kept than without", judged)


def targets(rows: list[dict[str, Any]]) -> list[str]:
    """What was aimed at beside what was measured, whether it was reached or not."""
    judge = Judge(rows)
    judge.limit("8 bits RTN", "kl", 0.002, "KL at most 0.002")
    best = judge.least("4 bits ")
    for figure, limit, what in (
        ("kl", 0.01, "KL at most 0.01"),
        ("top-1", 0.97, "top-1 at least 97 %"),
        ("router set", 0.95, "router sets at least 95 %"),
    ):
        judge.limit(best, figure, limit, f"(the best method) {what}")
    for part in PARTS:
        for bits in (4, 3, 2):
            judge.ratio(
                f"{part}{bits} bits: GPTQ's KL at most half of RTN's",
                f"{part}{bits} bits GPTQ",
                f"{part}{bits} bits RTN",
                0.5,
            )
        mix, uniform, by_use = f"{part}{MIX} + router", f"{part}3 bits GPTQ + router", f"{part}{BY_USE}"
        judge.ratio(f"{mix}: within 15 % of {uniform}", mix, uniform, 1.15)
        judge.ratio(f"{mix}: at most half of frequency's KL", mix, by_use, 0.5)
    for case in dict.fromkeys(r["case"] for r in rows if r["case"].endswith("+ router")):
        judge.more_sets(case)
    return judge.said


def orders(rows: list[dict[str, Any]]) -> list[str]:
    """Orders that papers found beside what was measured here: whether they reproduce."""
    judge, words = Judge(rows), ("reproduces", "does NOT reproduce")
    for part in PARTS:
        for better, worse in (("fisher", "error"), ("error", "frequency"), ("fisher", "frequency"))[0 if part else 2 :]:
            first, second = (f"{part}3.0 bits of 2 and 4 by {how}" for how in (better, worse))
            judge.ratio(f"GEMQ: {part}bits by {better} are better spent than by {worse}", first, second, 1, words)
        for bits in (4, 3, 2):
            if part:
                judge.ratio(
                    f"HQQ: {part}{bits} bits are better than rounded to nearest",
                    f"{part}{bits} bits HQQ",
                    f"{part}{bits} bits RTN",
                    1,
                    words,
                )
            judge.ratio(
                f"EAC-MoE: {part}{bits} bits GPTQ are better with calibrated routers",
                f"{part}{bits} bits GPTQ + router",
                f"{part}{bits} bits GPTQ",
                1,
                words,
            )
    for share in ("3/4", "1/2"):
        for better, worse in (
            ("reap", "activation"),
            ("reap", "frequency"),
            ("frequency", "random"),
            ("reap", "random"),
        ):
            cases = [f"{share} of the experts, {score}" for score in (better, worse)]
            judge.ratio(
                f"REAP: {share} of the experts, those that {better} keeps are better than those that {worse} keeps",
                *cases,
                1,
                words,
            )  # type: ignore[misc]
    judge.ratio(
        "EAC-MoE (three of its four models): PESF 0.3 costs less than 3 bits with calibrated routers",
        "PESF 0.3",
        "3 bits GPTQ + router",
        1,
        words,
    )
    judge.ratio("EAC-MoE: PESF 0.7 costs more than PESF 0.3", "PESF 0.3", "PESF 0.7", 1, words)
    return judge.said
