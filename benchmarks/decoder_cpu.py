"""Decoders on this machine's CPU: moec's engine beside PyTorch, transformers' exporter, onnxruntime-genai's builder and
llama.cpp.

usage: python benchmarks/decoder_cpu.py [--case moe dense] [--only moec llama.cpp …] [--rounds 4] [--sittings 2]
[--patience 1] [--limit 600] [--json] [--save]

Two models with random weights in float32: Qwen3-MoE's shape (0.27 B parameters, 0.07 B active) and a dense Qwen3
of the same sizes (FFN of 1024).
`prefill` is a prompt of 512 tokens at batch 1, `decode` the median of 24 tokens after a prompt of 64; both as tokens a
second, greedy, the same text for everybody.

Every contestant lives in a process of its own with every core that this one may use (`taskset` gives fewer), and only
one works at a time, in rotating order. There are several sittings, every other with processes made in the opposite
order: those made first have slower memory. A ratio is the median over the rounds of all sittings of (that contestant's
time / moec's): above 1, moec is faster. Each contestant's logits are compared with eager's; one that is wrong by more
than 1 % of their standard deviation has no figures. One that is not installed, or not ready in time, is named with the
reason.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from decoder_contestants import CONTESTANTS, DENSE_ONLY, MOE_ONLY
from decoder_models import CASES, VOCABULARY
from decoder_sittings import PROMPT, SHORT, Benchmark, Contestant, Measured, Times
from moe_cpu import wait_for_quiet

TOKENS = 24
ALLOWED = 1e-2  # of the logits' standard deviation; llama.cpp's sums are in another order


def measure(people: dict[str, Contestant], rounds: int, patience: float) -> Measured:
    """Seconds of the prompt and of a token, round by round, and each contestant's error against eager."""
    rng = np.random.default_rng(0)
    times: Times = {who: {"prefill": [], "decode": []} for who in people}
    errors = dict.fromkeys(people, 0.0)
    for n in range(rounds):
        text = rng.integers(3, VOCABULARY, (1, PROMPT))
        tokens = rng.integers(3, VOCABULARY, TOKENS).tolist()
        logits: dict[tuple[str, str], Any] = {}
        order = list(people)
        for who in order[n % len(order) :] + order[: n % len(order)]:
            for what, ids, more in (("prefill", text, []), ("decode", text[:, :SHORT], tokens)):
                wait_for_quiet(patience)
                seconds, logits[who, what] = people[who].run(ids, more)
                times[who][what].append(seconds[0] if what == "prefill" else statistics.median(seconds[1:]))
        for who, what in logits:
            want = logits["eager", what]
            errors[who] = max(errors[who], float(abs(logits[who, what] - want).max() / want.std()))
    return times, errors


def rows_of(case: str, times: Times, errors: dict[str, float], absent: dict[str, str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"case": case, "who": who, "value": None, "unit": f"absent: {why}"} for who, why in absent.items()
    ]
    for who, found in times.items():
        rows.append({"case": case, "who": who, "value": float(f"{errors[who]:.2g}"), "unit": "std from eager"})
        for what, seconds in found.items():
            if errors[who] > ALLOWED:
                continue
            tokens = PROMPT if what == "prefill" else 1
            ratios = [s / m for s, m in zip(seconds, times["moec"][what], strict=True)]
            rows.append(
                {
                    "case": f"{case} {what}",
                    "who": who,
                    "value": round(tokens / statistics.median(seconds), 2),
                    "unit": "tokens/s",
                }
            )
            rows.append(
                {"case": f"{case} {what}", "who": who, "value": round(statistics.median(ratios), 3), "unit": "x moec"}
            )
    return rows


def table(report: dict[str, Any]) -> list[str]:
    """The report for people, as Markdown."""
    rows = report["rows"]
    value = {(r["case"], r["who"], r["unit"]): r["value"] for r in rows}
    cases = list(dict.fromkeys(r["case"] for r in rows if r["unit"] == "tokens/s"))
    people = list(dict.fromkeys(r["who"] for r in rows if r["unit"] == "tokens/s"))
    lines = ["| tokens/s (moec is faster by) | " + " | ".join(cases) + " |", "|---|" + "---|" * len(cases)]
    for who in people:
        cells = [
            f"{value[c, who, 'tokens/s']:.1f} ({value[c, who, 'x moec']:.2f})" if (c, who, "tokens/s") in value else "–"
            for c in cases
        ]
        lines.append(f"| {who} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {r['case']}: {r['who']} {r['unit']}" for r in rows if r["value"] is None)]
    lines += [
        f"- {r['case']}: {r['who']} is {r['value']:g} standard deviations from eager"
        for r in rows
        if r["unit"] == "std from eager"
    ]
    return lines


if __name__ == "__main__":
    Benchmark(
        name="decoder_cpu",
        about=__doc__,
        cases=CASES,
        people=tuple(CONTESTANTS),
        always=("moec", "eager"),
        measure=measure,
        rows_of=rows_of,
        table=table,
        unfit={"moe": DENSE_ONLY, "dense": MOE_ONLY},
    ).run()
