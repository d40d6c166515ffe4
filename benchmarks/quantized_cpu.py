"""Mixture-of-experts blocks with quantized experts on this machine's CPU: each packed form beside moec's float32
engine.

usage: python benchmarks/quantized_cpu.py [--case A B] [--tokens 1 16 128] [--seconds 10] [--patience 1] [--json]
[--save]

Blocks, processes and timing are those of `moe_cpu.py`; experts are rounded to nearest in groups of 64, symmetric, and
nothing else is quantized. `grouped` is one product an expert (MatMulNBits), `QMoE` the one operator. With `rounded`
activations are rounded to 8 bits (the target's `accuracy=int8`); else the engine computes in float32, at 4 bits from
the packed bytes, at 8 from matrices that are unpacked at load, there being no exact kernel. The compiler's own choice
is QMoE for 4 bits and grouped for 8, and QMoE for both when rounded. Ratios are medians over the rounds of (that
engine's time / the float32 engine's in the same round): below 1, the quantized engine is faster. `read` sums as many
bytes as the chosen experts have in float32, `read 4` when packed to 4 bits.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import moe_contestants
import torch
from moe_contestants import CASES, VOCABULARY, Case
from moe_cpu import SHAPES, Contestant, flusher, table
from reporting import add_output, environment, put_out

GROUP, BASE = 64, "float32"
EXACT, ROUNDED = 1e-3, 0.25  # max |d|/std from the first engine of the same bits


def engine(
    case: Case, bits: int, form: str = "", accuracy: str = "exact", optimize_for: str = "latency"
) -> moe_contestants.Prepare:
    """The engine of a block whose experts have so many bits (32: as they are), in one form, whatever the compiler would
    choose."""
    from moec import api
    from moec.backends.onnxruntime import Onnxruntime
    from moec.backends.onnxruntime.experts import lower
    from moec.pipeline.passes import Context
    from moec.pipeline.pipeline import Pipeline
    from moec.targets.target import Target

    if form:
        lower.why_not_qmoe = lambda *_: "" if form == "QMoE" else "asked for"  # in this process alone
    target, folder = Target.parse(f"onnxruntime:accuracy={accuracy}"), Path(tempfile.mkdtemp(prefix="moec-bench-"))
    program, backend = api.open_source(case.model()).capture(), Onnxruntime()
    if bits < 32:
        pipeline = f"find-moe, quantize(bits={bits}, group={GROUP}, attention=16)"
        program, _ = Pipeline.parse(pipeline).all_optional().run(program, Context())
    program, _ = backend.legalize(target).run(program, Context())
    facts = backend.build(program, target, folder, optimize_for)
    assert facts["blocks"][0].get("bits", "32") == str(bits)
    built = backend.load(folder, target)
    return lambda ids: lambda: built(input_ids=ids, attention_mask=torch.ones_like(ids))["last_hidden_state"].numpy()


def reader(case: Case, bits: int) -> moe_contestants.Prepare:
    """Summing as many bytes as the chosen experts have, scales too; `count` holds their number."""
    each = case.expert_bytes * (bits / 32 + (1 / GROUP if bits < 32 else 0))
    memory = torch.ones(int(case.experts * each) // 4)
    return lambda count: memory[: int(int(count) * each) // 4].sum


PEOPLE: dict[str, Callable[[Case], moe_contestants.Prepare]] = {
    BASE: partial(engine, bits=32),
    "4 bits QMoE": partial(engine, bits=4, form="QMoE"),
    "4 bits grouped": partial(engine, bits=4, form="grouped"),
    "4 bits grouped, throughput": partial(engine, bits=4, form="grouped", optimize_for="throughput"),
    "4 bits QMoE rounded": partial(engine, bits=4, form="QMoE", accuracy="int8"),
    "4 bits grouped rounded": partial(engine, bits=4, form="grouped", accuracy="int8"),
    "8 bits grouped": partial(engine, bits=8, form="grouped"),
    "8 bits QMoE rounded": partial(engine, bits=8, form="QMoE", accuracy="int8"),
    "8 bits grouped rounded": partial(engine, bits=8, form="grouped", accuracy="int8"),
    "read": partial(reader, bits=32),
    "read 4": partial(reader, bits=4),
    "reference": moe_contestants.reference,
}
moe_contestants.CONTESTANTS.update(PEOPLE)


def measure(tokens: int, people: dict[str, Contestant], flush: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Rounds at one number of tokens, in rotating order: seconds of each engine, the experts chosen, errors among
    engines of equal bits."""
    timed = [who for who in people if who != "reference"]
    times: dict[str, list[float]] = {who: [] for who in timed}
    worst: dict[str, float] = {}
    hits, end, n = [], 0.0, -1  # round -1 warms up
    while n < 5 or time.perf_counter() < end:
        ids = torch.randint(0, VOCABULARY, SHAPES[tokens], generator=torch.Generator().manual_seed(1000 * tokens + n))
        outputs: dict[str, Any] = {"reference": people["reference"].run(ids, lambda: None)[1]}
        count = outputs["reference"][1]
        for k in range(len(timed)):
            who = timed[(k + n) % len(timed)]
            took, outputs[who] = people[who].run(torch.tensor(count) if who.startswith("read") else ids, flush)
            times[who] += [took] * (n >= 0)
        for who in timed:
            if not who.startswith("read"):
                worst[who] = max(worst.get(who, 0.0), _error(outputs, who))
        hits += [count] * (n >= 0)
        n, end = n + 1, end or time.perf_counter() + seconds
    wrong = {who: e for who, e in worst.items() if e > (ROUNDED if "rounded" in who else EXACT)}
    assert not wrong, f"engines that should say the same do not: {wrong}"
    return {"times": times, "experts": statistics.mean(hits), "errors": worst, "rounds": n}


def _error(outputs: dict[str, Any], who: str) -> float:
    """max |d|/std from the exact grouped engine of the same bits, or of the float32 engine from the untouched model."""
    want = outputs["reference"][0] if who == BASE else outputs[f"{who.split()[0]} bits grouped"]
    return float(abs(outputs[who] - want).max() / want.std())


def rows_of(case: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    times = found["times"]
    rows = [{"case": case, "who": "experts chosen", "value": found["experts"], "unit": "experts"}]
    rows.append({"case": case, "who": "rounds", "value": found["rounds"], "unit": "rounds"})
    rows += [{"case": case, "who": who, "value": e, "unit": "std"} for who, e in found["errors"].items()]
    for who, values in times.items():
        ratios = [v / o for v, o in zip(values, times[BASE], strict=True)]
        rows.append({"case": case, "who": who, "value": round(statistics.median(values) * 1e3, 4), "unit": "ms"})
        rows.append({"case": case, "who": who, "value": round(min(values) * 1e3, 4), "unit": "ms least"})
        rows.append({"case": case, "who": who, "value": round(statistics.median(ratios), 4), "unit": f"x {BASE}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--tokens", nargs="+", type=int, choices=list(SHAPES), default=[1, 16, 128])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(PEOPLE),
        default=list(PEOPLE),
        help="besides the float32 engine and the exact grouped ones",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="for each case and number of tokens")
    parser.add_argument(
        "--patience",
        type=float,
        default=0.0,
        help="on a shared machine: seconds to wait, before each run, for others to be idle",
    )
    add_output(parser, "quantized_cpu")
    options = parser.parse_args()
    report: dict[str, Any] = {**environment(), "group": GROUP, "rows": []}
    flush, always = flusher(), (BASE, "4 bits grouped", "8 bits grouped", "reference")
    for name in options.case:
        people = {
            who: Contestant(who, CASES[name], options.patience) for who in PEOPLE if who in (*options.only, *always)
        }
        for tokens in options.tokens:
            report["rows"] += rows_of(f"{name} T={tokens}", measure(tokens, people, flush, options.seconds))
            print(f"{name} {CASES[name].title}, {tokens} tokens: done", file=sys.stderr)
        for person in people.values():
            person.close()
    text = table(report).replace("ratio to moec's best", f"ratio to {BASE}")
    put_out("quantized_cpu", report, text, options)


if __name__ == "__main__":
    main()
