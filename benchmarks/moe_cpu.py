"""Mixture-of-experts blocks on this machine's CPU: moec's two formulations beside PyTorch's, transformers' and the
memory's speed.

usage: python benchmarks/moe_cpu.py [--case A B] [--tokens 1 4 16 128 1024] [--seconds 20] [--sittings 2] [--patience 1]
[--processor-time] [--json] [--save [NAME]]

Two blocks, SwiGLU in float32, random weights: A is Mixtral's (hidden 1024, 8 experts of 2048, top-2), B is Qwen3-MoE's
(hidden 1024, 64 experts of 512, top-8). Each stands in a one-layer model of transformers whose attention is one head of
16, so that the block is nearly all of it. Every row times the whole model, from token ids and an attention mask to
hidden states, as a user calls it: PyTorch's rows run (or compile, for each shape anew) the model's own forward without
a cache. Every output is compared with the untouched model's.

Every contestant lives in a process of its own, with every core, and only one works at a time. In each round all of them
get the same fresh tokens in rotating order, after the caches were flushed. There are several sittings, every other with
processes made in the opposite order: whose memory is where makes 10 % for as long as a process lives. Milliseconds are
medians of all rounds; a ratio is the median over the rounds of (that contestant's time / the best of moec's two in this
case): above 1, moec is faster. `read` is the time to sum as many bytes as the weights of the experts that were chosen
have: no implementation in float32 can take less.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from moe_contestants import CASES, CONTESTANTS, OURS, VOCABULARY, Case
from reporting import RESULTS, environment, put_out, under_machine
from torch import Tensor

SHAPES = {
    1: (1, 1),
    4: (1, 4),
    16: (1, 16),
    128: (2, 64),
    1024: (16, 64),
}  # tokens -> batch, sequence; short ones: attention is not the subject
GATHER_LIMIT_BYTES = 2 * 2**30  # batched_mm copies an expert's weights for every routed token


# ---------------------------------------------------------------------- processes
def worker(pipe: Any, who: str, case: Case, processor: bool) -> None:
    """Serve one contestant: (input, times) in, (median seconds of the call, output) out."""
    clock = time.process_time if processor else time.perf_counter
    with (
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
        torch.inference_mode(),
    ):  # exporters talk
        prepare = CONTESTANTS[who](case)
        pipe.send("ready")
        while (given := pipe.recv()) is not None:
            run = prepare(given)
            pipe.send("set")
            pipe.recv()  # the caches are flushed now
            start = clock()
            output = run()
            seconds = clock() - start
            pipe.send((seconds, None if who == "read" else output))


class Contestant:
    """A process that runs one implementation of one case."""

    def __init__(self, who: str, case: Case, patience: float = 0.0, processor: bool = False) -> None:
        self.patience = patience
        context = multiprocessing.get_context("spawn")
        self.who, (self.pipe, other) = who, context.Pipe()
        self.process = context.Process(target=worker, args=(other, who, case, processor), daemon=True)
        self.process.start()
        other.close()  # ours: a worker that dies ends the run instead of hanging it
        self.pipe.recv()

    def run(self, given: Tensor, flush: Callable[[], Any]) -> tuple[float, Any]:
        self.pipe.send(given)
        self.pipe.recv()
        flush()
        wait_for_quiet(self.patience)
        self.pipe.send("go")
        seconds, output = self.pipe.recv()
        return seconds, output

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


def wait_for_quiet(patience: float) -> None:
    """Return when all cores that this process may use were idle together for 30 ms, or after `patience` seconds;
    spinning threads of the last run stop meanwhile."""
    own = {f"cpu{n}" for n in os.sched_getaffinity(0)}

    def idle() -> int:
        counts = (line.split() for line in Path("/proc/stat").read_text().splitlines())
        return sum(int(n) for name, *rest in counts if name in own for n in rest[3:5])

    end, needed = time.perf_counter() + patience, 0.03 * os.sysconf("SC_CLK_TCK") * len(own) - 1
    time.sleep(0.005)
    while time.perf_counter() < end:
        before = idle()
        time.sleep(0.03)
        if idle() - before >= needed:
            return


def flusher() -> Callable[[], Any]:
    """Writes more than the last-level cache holds."""
    found = [p.read_text() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    largest = max([int(s.strip().rstrip("K")) * 1024 for s in found if s.strip().endswith("K")], default=64 * 2**20)
    memory = torch.ones(min(2 * largest, 2**29) // 4)
    return lambda: memory.fill_(time.perf_counter())


# ---------------------------------------------------------------------- measuring
def measure(
    case: Case, tokens: int, people: dict[str, Contestant], flush: Callable[[], Any], seconds: float
) -> dict[str, Any]:
    """Rounds of one case at one number of tokens; returns each contestant's times in seconds, round by round, and what
    was found."""
    gathers = tokens * case.top_k * case.expert_bytes <= GATHER_LIMIT_BYTES
    timed = [who for who in people if who != "reference" and (gathers or "batched_mm" not in who)]
    times: dict[str, list[float]] = {who: [] for who in timed}
    worst, hits, end, n = 0.0, [], 0.0, -1  # round -1 warms up
    while n < 5 or time.perf_counter() < end:
        ids = torch.randint(0, VOCABULARY, SHAPES[tokens], generator=torch.Generator().manual_seed(1000 * tokens + n))
        want, count = people["reference"].run(ids, lambda: None)[1]
        for k in range(len(timed)):
            who = timed[(k + n) % len(timed)]
            took, output = people[who].run(torch.tensor(count) if who == "read" else ids, flush)
            if output is not None:
                worst = max(worst, float(abs(output - want).max() / want.std()))
            if n >= 0:
                times[who].append(took)
        hits += [count] * (n >= 0)
        n += 1
        end = end or time.perf_counter() + seconds
    assert worst < 1e-3, f"an engine is wrong by {worst:.1e} of the output's standard deviation"
    return {"times": times, "experts": statistics.mean(hits), "error": worst, "rounds": n}


def joined(sittings: list[dict[str, Any]]) -> dict[str, Any]:
    """What several sittings measured of one case, as one."""
    times = {who: [t for found in sittings for t in found["times"][who]] for who in sittings[0]["times"]}
    rounds, worst = sum(found["rounds"] for found in sittings), max(found["error"] for found in sittings)
    return {
        "times": times,
        "experts": statistics.mean(found["experts"] for found in sittings),
        "error": worst,
        "rounds": rounds,
    }


def rows_of(name: str, tokens: int, found: dict[str, Any]) -> list[dict[str, Any]]:
    case, times = f"{name} T={tokens}", found["times"]
    best = min(OURS, key=lambda who: statistics.median(times[who]))
    rows = [{"case": case, "who": "experts chosen", "value": found["experts"], "unit": "experts"}]
    rows += [
        {"case": case, "who": "rounds", "value": found["rounds"], "unit": "rounds"},
        {"case": case, "who": "error", "value": found["error"], "unit": "std"},
    ]
    for who, values in times.items():
        ratios = [v / o for v, o in zip(values, times[best], strict=True)]
        rows.append({"case": case, "who": who, "value": round(statistics.median(values) * 1e3, 4), "unit": "ms"})
        rows.append({"case": case, "who": who, "value": round(min(values) * 1e3, 4), "unit": "ms least"})
        rows.append({"case": case, "who": who, "value": round(statistics.median(ratios), 4), "unit": f"x {best}"})
    return rows


def table(report: dict[str, Any]) -> str:
    """The report for people, as Markdown."""
    rows = report["rows"]
    cases, people = (
        list(dict.fromkeys(r["case"] for r in rows)),
        list(dict.fromkeys(r["who"] for r in rows if r["unit"] == "ms")),
    )
    value = {
        (r["case"], r["who"], r["unit"].split()[0] if r["unit"][0] == "x" else r["unit"]): r["value"] for r in rows
    }
    lines = ["| ms (ratio to moec's best) | " + " | ".join(cases) + " |", "|---|" + "---|" * len(cases)]
    for who in people:
        cells = [
            f"{value[c, who, 'ms']:.2f} ({value[c, who, 'x']:.2f})" if (c, who, "ms") in value else "–" for c in cases
        ]
        lines.append(f"| {who} | " + " | ".join(cells) + " |")
    lines.append(
        "| experts chosen | " + " | ".join(f"{value[c, 'experts chosen', 'experts']:.1f}" for c in cases) + " |"
    )
    return under_machine(report, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--tokens", nargs="+", type=int, choices=list(SHAPES), default=[1, 16, 128, 1024])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(CONTESTANTS),
        default=list(CONTESTANTS),
        help="contestants besides moec's two, read and reference",
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="for each case and number of tokens")
    parser.add_argument("--sittings", type=int, default=2, help="how often all processes are made anew")
    parser.add_argument(
        "--patience",
        type=float,
        default=0.0,
        help="on a shared machine: seconds to wait, before each run, for others to be idle",
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the process's own time, of all of its threads: for one thread on a core that others use too",
    )
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    parser.add_argument(
        "--save", nargs="?", const="moe_cpu", metavar="NAME", help=f"write {RESULTS.name}/NAME.json and .md"
    )
    options = parser.parse_args()
    report: dict[str, Any] = {**environment(), "rows": []}
    report["machine"]["clock"] = "processor time" if options.processor_time else "time"
    flush = flusher()
    for name in options.case:
        wanted = [who for who in CONTESTANTS if who in (*options.only, *OURS, "read", "reference")]
        found: dict[int, list[dict[str, Any]]] = {tokens: [] for tokens in options.tokens}
        for order in [wanted, wanted[::-1]] * (options.sittings // 2) + [wanted] * (options.sittings % 2):
            people = {who: Contestant(who, CASES[name], options.patience, options.processor_time) for who in order}
            for tokens in options.tokens:
                found[tokens].append(measure(CASES[name], tokens, people, flush, options.seconds / options.sittings))
                print(f"{name} {CASES[name].title}, {tokens} tokens: done", file=sys.stderr)
            for person in people.values():
                person.close()
        report["rows"] += [row for tokens in options.tokens for row in rows_of(name, tokens, joined(found[tokens]))]
    put_out(options.save, report, table(report), options)


if __name__ == "__main__":
    main()
