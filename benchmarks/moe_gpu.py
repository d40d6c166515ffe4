"""Mixture-of-experts blocks on this machine's GPU: moec's kernels beside PyTorch's, transformers', ONNX Runtime's and
the hardware's own limits.

usage: python benchmarks/moe_gpu.py [--shape mixtral qwen3] [--tokens 1 16 4096] [--bits 16 4] [--seconds 450] [--toy]
       [--json] [--save] python benchmarks/moe_gpu.py --tune tiles.toml [--shape …] [--bits …] [--seconds 450]

Whole blocks, router included, of Mixtral-8x7B, Qwen3-30B-A3B, gpt-oss-120b and DeepSeek-V3, with random weights in
bfloat16, or 4-bit integers in groups of 128 (eager PyTorch then has the unpacked weights in bfloat16, ONNX Runtime its
QMoE). gpt-oss's unpacked matrices stand transposed in memory, as transformers keeps them. Routing is uniform, or skewed
as Zipf has it (without ONNX Runtime). Every output is compared with the same block in float64 before it is timed: ours
must be within twice eager PyTorch's error, or the run ends with status 1.

`moec persistent` is the same by persistent kernels (one program a multiprocessor), for more than a few tokens;
`moec compiled` is the operator under `torch.compile`. Before ours is timed, PyTorch is set to raise where a call waits
for the GPU.

A time is the median of calls between two events, with the L2 cache overwritten before each; `graph` is the same call
captured in a CUDA graph, without Python's part, where it can be captured. `bandwidth` is (chosen experts' bytes +
router + tokens in and out) / time over the speed of a device-to-device copy, `matrix rate` the experts' floating-point
operations / time over that of a large bfloat16 product, both measured in the same run. Cells beyond the `--seconds` are
left out and named.

`--tune` measures no peers: it looks for faster tiles for these shapes on this GPU, and writes lines that
`MOEC_TILES=tiles.toml` puts to use, or that a person puts into `moec/kernels/tiles.toml`.

`--toy` runs everything on small blocks through Triton's interpreter, on the CPU: the script's own test, whose times
mean nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reporting import add_output, environment, put_out

if "--toy" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
from moe_gpu_contestants import CONTESTANTS, SHAPES, TOYS, Block, Shape, for_tuning, resources
from torch import Tensor

from moec.kernels import tuning
from moec.kernels.tiles import FEW_TOKENS, ROWS, read, written

TOKENS = [1, 16, 4096, 4, 64, 256, 1024]  # the ends first: what is left out at the deadline is the middle
MARGIN = 2.0
WAITING = ("eager", "onnxruntime")  # which wait for the device inside, and cannot be captured
COPIES_LIMIT_BYTES = 16 * 2**30  # batched_mm copies an expert's weights for every routed token


class Timer:
    """Times calls on one device."""

    def __init__(self, toy: bool) -> None:
        self.toy = toy
        self.flusher = None if toy else torch.empty(2**28, dtype=torch.uint8, device="cuda")

    def median_ms(self, call: Callable[[], Any], runs: int = 0, budget_s: float = 0.06) -> float:
        """Median over `runs`, or as many as fit the budget, at least 5."""
        if self.toy:
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        call()
        once = self.events(call, 2)
        runs = runs or max(5, min(50, int(budget_s * 1e3 / max(once, 1e-3))))
        return self.events(call, runs)

    def events(self, call: Callable[[], Any], runs: int) -> float:
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
        for start, end in pairs:
            self.flusher.zero_()  # type: ignore[union-attr]
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in pairs)

    def graph_ms(self, call: Callable[[], Any]) -> float | None:
        """The same without Python: None where the call cannot be captured."""
        if self.toy:
            return None
        try:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call()
        except (RuntimeError, AssertionError):
            torch.cuda.synchronize()
            return None
        return self.median_ms(graph.replay)


def limits(timer: Timer) -> dict[str, float]:
    """Bytes a second of a copy (read and written), and floating-point operations a second of a bfloat16 product."""
    if timer.toy:
        return {"bytes_per_s": 1e10, "flop_per_s": 1e11}
    a, b = (torch.empty(2**31, dtype=torch.uint8, device="cuda") for _ in range(2))
    m = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    copy, product = timer.median_ms(lambda: b.copy_(a), 20), timer.median_ms(lambda: m @ m, 20)
    return {"bytes_per_s": 2 * a.nbytes / copy * 1e3, "flop_per_s": 2 * 8192**3 / product * 1e3}


def error(got: Tensor, exact: Tensor) -> float:
    value = float((got.double() - exact).norm() / exact.norm())
    return value if value == value else float("inf")


def never_waits(call: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Raises where a call that has been made before makes the host wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check(block: Block, people: dict[str, Callable[[Tensor], Tensor]], x: Tensor) -> dict[str, float]:
    """Each contestant's relative error on 64 of the tokens. Raises unless ours is within the margin of eager
    PyTorch's."""
    some = torch.linspace(0, len(x) - 1, min(64, len(x)), device=x.device).long()
    exact = block.reference(x[some], True)
    plain, found = (
        error(block.reference(x[some], False), exact),
        {who: error(call(x)[some], exact) for who, call in people.items()},
    )
    for who in (who for who in found if who.startswith("moec") and not found[who] <= MARGIN * plain):
        raise SystemExit(
            f"{block.shape.title}, {len(x)} tokens: the error of {who} is {found[who]:.2e}, eager PyTorch's {plain:.2e}"
        )
    for who in (who for who in found if who.startswith("moec") and x.is_cuda):
        never_waits(people[who], x)
    return found


def measure(
    name: str, block: Block, people: dict[str, Any], tokens: int, skewed: bool, timer: Timer, speed: dict[str, float]
) -> list[dict[str, Any]]:
    """Rows of one cell."""
    case, x = (
        f"{name} {block.bits}-bit T={tokens} {'skewed' if skewed else 'uniform'}",
        block.draw(tokens, block.shape.hidden),
    )
    copies = tokens * block.shape.routing.top_k * 3 * block.shape.hidden * block.shape.inner * 2
    here = {who: call for who, call in people.items() if copies <= COPIES_LIMIT_BYTES or "batched_mm" not in who}
    here = {who: call for who, call in here.items() if tokens > FEW_TOKENS or who != "moec persistent"}
    rows = [{"case": case, "who": who, "value": value, "unit": "error"} for who, value in check(block, here, x).items()]
    for who, call in here.items():
        ms, graph = (
            timer.median_ms(lambda call=call: call(x)),
            None if who in WAITING else timer.graph_ms(lambda call=call: call(x)),
        )
        best = min(ms, graph or ms)
        rows += [{"case": case, "who": who, "value": round(ms, 5), "unit": "ms"}]
        rows += [{"case": case, "who": who, "value": round(graph, 5), "unit": "ms graph"}] if graph is not None else []
        rows += [
            {
                "case": case,
                "who": who,
                "value": round(block.bytes_read(x) / best * 1e3 / speed["bytes_per_s"], 4),
                "unit": "bandwidth",
            }
        ]
        rows += [
            {
                "case": case,
                "who": who,
                "value": round(block.flop(x) / best * 1e3 / speed["flop_per_s"], 4),
                "unit": "matrix rate",
            }
        ]
    return rows


def contestants(block: Block, names: list[str]) -> dict[str, Any]:
    """Those that this machine and this block allow; the others are named on stderr."""
    found: dict[str, Any] = {}
    for who in names:
        if block.bits == 4 and ("torch" in who or "transformers" in who or who == "moec compiled"):
            continue  # they have no packed weights; eager, and moec, stand for them
        if who == "onnxruntime" and (block.shape.biases or block.shape.experts > 128 or block.shape.routing.groups > 1):
            continue  # its operator has no groups, and these files would take minutes to write
        try:
            found[who] = CONTESTANTS[who](block)
            found[who](block.draw(3, block.shape.hidden))
        except Exception as reason:  # a peer that isn't there must not end the run
            if who == "moec":
                raise
            found.pop(who, None)
            print(
                f"{who} does not take part in {block.shape.title}: {str(reason).splitlines()[0][:200]}", file=sys.stderr
            )
    return found


def about(toy: bool) -> dict[str, Any]:
    """The machine, its GPU before all, and the versions."""
    gpu = "none: Triton's interpreter" if toy else torch.cuda.get_device_name()
    found = environment(("torch", "triton", "transformers", "onnxruntime-gpu", "moec"))
    return {**found, "machine": {"gpu": gpu, **found["machine"]}}


def table(report: dict[str, Any]) -> str:
    """The report for people, as Markdown: milliseconds (ours with and without a graph, the peers' better one) and the
    fractions of the limits for ours."""
    value = {(r["case"], r["who"], r["unit"]): r["value"] for r in report["rows"]}
    cases, people = (
        list(dict.fromkeys(r["case"] for r in report["rows"])),
        [who for who in CONTESTANTS if who in {r["who"] for r in report["rows"]}],
    )
    columns = [
        c
        for who in people
        for c in ([(who, ["ms"]), (who, ["ms graph"])] if who.startswith("moec") else [(who, ["ms", "ms graph"])])
    ]
    heads = [f"{who}, graph" if units == ["ms graph"] else who for who, units in columns]
    lines = ["| ms | " + " | ".join(heads) + " | moec: bandwidth | matrix rate |", "|---|" + "---|" * (len(heads) + 2)]
    for case in cases:
        ms = [
            min((value[case, who, u] for u in units if (case, who, u) in value), default=None) for who, units in columns
        ]
        cells = ["–" if m is None else f"{m:.4f}" for m in ms]
        lines.append(
            f"| {case} | "
            + " | ".join(cells)
            + "".join(f" | {100 * value.get((case, 'moec', u), 0):.0f} %" for u in ("bandwidth", "matrix rate"))
            + " |"
        )
    speed = report["limits"]
    if "interpreter" in report["machine"]["gpu"]:
        lines = ["| relative error | " + " | ".join(people) + " |", "|---|" + "---|" * len(people)]
        lines += [
            f"| {c} | "
            + " | ".join(f"{value[c, w, 'error']:.1e}" if (c, w, "error") in value else "–" for w in people)
            + " |"
            for c in cases
        ]
        return "\n".join([", ".join(f"{k} {v}" for k, v in report["versions"].items()), "", *lines])
    head = (
        f"{report['machine']['gpu']}; copy {speed['bytes_per_s'] / 1e12:.2f} TB/s, bfloat16 "
        f"{speed['flop_per_s'] / 1e12:.0f} TFLOP/s; "
    )
    return "\n".join(
        [
            head + ", ".join(f"{k} {v}" for k, v in report["versions"].items()),
            "",
            *lines,
            *[f"left out: {c}" for c in report["left_out"]],
        ]
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    toy, shapes = options.toy, TOYS if options.toy else SHAPES
    device, dtype, timer, end = "cpu" if toy else "cuda", torch.bfloat16, Timer(toy), time.monotonic() + options.seconds
    report: dict[str, Any] = {**about(toy), "limits": limits(timer), "rows": [], "left_out": []}
    for name in [n for n in options.shape if n in shapes]:
        for bits in options.bits:
            report["rows"] += block_rows(name, shapes[name], bits, options, timer, report, end, device, dtype)
    return report


def block_rows(
    name: str,
    shape: Shape,
    bits: int,
    options: argparse.Namespace,
    timer: Timer,
    report: dict[str, Any],
    end: float,
    device: str,
    dtype: torch.dtype,
) -> list[dict[str, Any]]:
    """All cells of one block that the deadline allows."""
    rows: list[dict[str, Any]] = []
    cells = [(t, skewed) for skewed in (False, True) for t in TOKENS if t in options.tokens]
    block, people = None, {}
    for tokens, skewed in cells:
        if time.monotonic() > end:
            report["left_out"].append(f"{name} {bits}-bit T={tokens} {'skewed' if skewed else 'uniform'}")
            continue
        if block is None:
            block = Block(shape, bits, device, dtype)
            people = contestants(block, options.only)
        if skewed:
            block.skew()
            people.pop("onnxruntime", None)  # whose router's bias is in its file
        rows += measure(name, block, people, tokens, skewed, timer, report["limits"])
        print(f"{name} {bits}-bit, {tokens} tokens, {'skewed' if skewed else 'uniform'}: done", file=sys.stderr)
    del people, block
    if not timer.toy:
        torch.cuda.empty_cache()
    return rows


def tune(options: argparse.Namespace) -> str:
    """Look for faster tiles, and write the file with what it had before and what was found."""
    shapes, device = (TOYS, "cpu") if options.toy else (SHAPES, "cuda")
    blocks = [
        for_tuning(Block(shapes[n], bits, device, torch.bfloat16))
        for n in options.shape
        if n in shapes
        for bits in options.bits
    ]
    found = tuning.tune(
        blocks,
        seconds=options.seconds,
        rows=ROWS[:1] if options.toy else ROWS,
        tell=lambda line: print(line, file=sys.stderr),
    )
    text = written({**(read(options.tune) if options.tune.exists() else {}), **found})
    options.tune.write_text(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, choices=sorted(TOKENS), default=TOKENS)
    parser.add_argument("--bits", nargs="+", type=int, choices=[16, 4], default=[16, 4])
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--seconds", type=float, default=440.0, help="after which no new cell is begun")
    parser.add_argument("--toy", action="store_true", help="small blocks in Triton's interpreter, without a GPU")
    parser.add_argument(
        "--tune", type=Path, metavar="FILE", help="look for faster tiles on this GPU instead, and write them to FILE"
    )
    parser.add_argument(
        "--resources",
        action="store_true",
        help="registers and shared memory of the kernels on five GPU generations, without a GPU, and end",
    )
    add_output(parser, "moe_gpu")
    options = parser.parse_args()
    if options.resources:
        print("\n".join(resources()))
        return
    if options.toy and options.tokens == TOKENS:
        options.tokens = [1, 64]
        options.only = [who for who in options.only if who != "torch.compile"]  # which needs a C++ compiler here
    if not options.toy and not torch.cuda.is_available():
        raise SystemExit("needs an NVIDIA GPU; --toy runs without one")
    with torch.inference_mode():
        if options.tune:
            print(tune(options))
            return
        report = run(options)
    put_out("moe_gpu", report, table(report), options)


if __name__ == "__main__":
    main()
