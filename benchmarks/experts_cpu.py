"""The experts of one block alone on one thread of a CPU: moec's kernels in PyTorch beside transformers' own
implementations, the memory's speed and the machine's rate of products.

usage: python benchmarks/experts_cpu.py [--case A B C] [--dtype float32 bfloat16] [--tokens 1 4 16 128 1024]
[--seconds 5] [--json] [--save]

Three blocks, SwiGLU, random weights: A is Mixtral's (hidden 1024, 8 experts of 2048, top-2), B Qwen3-MoE's (hidden
1024, 64 experts of 512, top-8), C that of Qwen3-30B-A3B as it is (hidden 2048, 128 experts of 768, top-8; 2.4 GB in
float32). All contestants run the same module of transformers, in one process and in turns, on fresh tokens that choose
experts at random.

Times are processor time of this one thread, so that others on the machine count little; medians over the rounds. Before
each call a buffer three times as large as the largest cache is summed, as `moec probe` does it, which also leaves
nothing in the caches: `read` is the median over the rounds of (bytes a second that the call read of its experts'
weights / bytes a second that the sum beside it read). `rate`: the same of its operations beside a product of 1024 rows
with a matrix of 2048 by 2048 in the same dtype. Both are of moec's calls. `off` is the largest difference of moec from
float64 or float32, in standard deviations of the output, beside eager's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from moe_contestants import CASES, Case
from reporting import add_output, environment, keep, show
from torch import Tensor

import moec
from moec.huggingface.accelerate import IMPLEMENTATION
from moec.timing.probe import largest_cache

BLOCKS = {**CASES, "C": Case("128 experts of 768, top-8, hidden 2048 (Qwen3-30B-A3B)", 128, 8, 768, 2048)}
CONTESTANTS = {"moec": IMPLEMENTATION, "grouped_mm": "grouped_mm", "eager": "eager"}
ROWS, WIDTH = 1024, 2048  # of the product whose rate is measured


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call, and what it gives."""
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


class Bench:
    """One block in one dtype."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.case, self.dtype = case, dtype
        self.model = moec.accelerate(case.model().to(dtype))
        self.experts = self.model.layers[0].mlp.experts
        self.buffer = torch.ones(3 * largest_cache() // 4)
        self.product = torch.randn(ROWS, WIDTH).to(dtype), torch.randn(WIDTH, WIDTH).to(dtype)

    def measure(self, tokens: int, for_seconds: float) -> list[dict[str, Any]]:
        """Rounds at one number of tokens."""
        case, people = self.case, list(CONTESTANTS)
        times: dict[str, list[float]] = {who: [] for who in (*people, "read", "rate")}
        off: dict[str, float] = dict.fromkeys(("moec", "eager"), 0.0)
        n, end = -1, time.perf_counter() + for_seconds  # round -1 warms up
        while n < 4 or time.perf_counter() < end:
            x = torch.randn(tokens, case.hidden, generator=torch.Generator().manual_seed(n + 9))
            weights, ids = torch.randn(tokens, case.experts).softmax(-1).topk(case.top_k)
            given = x.to(self.dtype), ids, weights.to(self.dtype)
            product = seconds(lambda: self.product[0] @ self.product[1])[0]
            outputs: dict[str, Tensor] = {}
            for k in range(len(people)):
                who = people[(k + n) % len(people)]
                self.model.set_experts_implementation(CONTESTANTS[who])
                summed = seconds(self.buffer.sum)[0]
                took, outputs[who] = seconds(partial(self.experts, *given))
                if n >= 0:
                    times[who].append(took)
                if n >= 0 and who == "moec":
                    read = len(ids.unique()) * case.expert_bytes // 4 * self.dtype.itemsize
                    work, whole = 6 * ids.numel() * case.inner * case.hidden, 2 * ROWS * WIDTH * WIDTH
                    times["read"].append(read / took * summed / self.buffer.nbytes)
                    times["rate"].append(work / took * product / whole)
            if n == -1:
                want = self.exact(x, ids, weights)
                off = {who: float((outputs[who] - want).abs().max() / want.std()) for who in off}
            n += 1
        unit = {"read": "of the sum's", "rate": "of the product's"}
        rows = [
            {
                "who": who,
                "value": round(statistics.median(v) * (1 if who in unit else 1e3), 4),
                "unit": unit.get(who, "ms"),
            }
            for who, v in times.items()
        ]
        return [*rows, *({"who": f"off, {who}", "value": v, "unit": "std"} for who, v in off.items())]

    def exact(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The block in float32 on what its dtype holds, expert by expert (in float64 where that is the dtype)."""
        wide = torch.float64 if self.dtype == torch.float32 else torch.float32
        x, weights = x.to(self.dtype).to(wide), weights.to(self.dtype).to(wide)
        found = torch.zeros_like(x)
        for e in ids.unique().tolist():
            token, choice = torch.where(ids == e)
            gate, up = (x[token] @ self.experts.gate_up_proj[e].to(wide).T).chunk(2, -1)
            down = (torch.nn.functional.silu(gate) * up) @ self.experts.down_proj[e].to(wide).T
            found.index_add_(0, token, down * weights[token, choice, None])
        return found


def table(report: dict[str, Any]) -> str:
    """The report for people, as Markdown."""
    rows = report["rows"]
    lines = [
        "| block | dtype | tokens | moec, ms | grouped_mm, ms | eager, ms | read | rate | off, moec | off, eager |"
    ]
    lines.append("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for case in dict.fromkeys(r["case"] for r in rows):
        of = {r["who"]: r["value"] for r in rows if r["case"] == case}
        times = " | ".join(f"{of[who]:.2f}" for who in CONTESTANTS)
        shares = " | ".join(f"{of[who]:.2f}" for who in ("read", "rate"))
        key, off = " | ".join(case.replace("T=", "").split()), (of["off, moec"], of["off, eager"])
        lines.append(f"| {key} | {times} | {shares} | {off[0]:.0e} | {off[1]:.0e} |")
    machine, versions = report["machine"], ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    blocks = [
        f"{name}: {case.title}" for name, case in BLOCKS.items() if any(r["case"].startswith(f"{name} ") for r in rows)
    ]
    head = f"{machine['cpu']}, one thread, processor time, load {machine['load'][0]:.1f}; {versions}"
    return "\n".join([head, "", "; ".join(blocks), "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--case", nargs="+", choices=list(BLOCKS), default=list(BLOCKS))
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 16, 128, 1024])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each number of tokens")
    add_output(parser, "experts_cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {**environment(), "rows": []}
    for name in options.case:
        for dtype in options.dtype:
            with torch.inference_mode():
                bench = Bench(BLOCKS[name], getattr(torch, dtype))
                for tokens in options.tokens:
                    case = f"{name} {dtype} T={tokens}"
                    report["rows"] += [{"case": case, **row} for row in bench.measure(tokens, options.seconds)]
                    print(f"{name}, {dtype}, {tokens} tokens: done", file=sys.stderr)
            if options.save:
                keep("experts_cpu", report, table(report))
    show(report, table(report), options)


if __name__ == "__main__":
    main()
