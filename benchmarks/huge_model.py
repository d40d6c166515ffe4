"""DeepSeek-V3 at its real shape through a small runner: time, memory and bytes of its compilation.

usage: python benchmarks/huge_model.py [--mixtures 1x64 1x128 1x256 2x256] [--dense 1] [--form onnx checkpoint]
    [--small] [--graph] [--json] [--save]

The published config (hidden 7168, 256 + 1 experts of 2048, FP8 in tiles of 128 x 128), cut to a few of its 58 layers of
experts, or of their experts, and of its 3 dense layers: `58x256 --dense 3` is the whole. Its numbers are drawn where
they are read (`huge_source.py`), and what is written goes into a sink that counts and hashes (`huge_sink.py`). All
between them is what `moec compile` does: capture on the meta device, the look for NaN, `quantize(bits=4)`, lowering,
the writing of an ONNX model, or of a compressed-tensors checkpoint. What is left out is the proof, which needs the
files. Each size is a process of its own.

Times are of the processor (CPU), so that others on the machine do not count, and on the wall. A line is fitted to the
CPU time over the bytes of the checkpoints. With `--graph` no weight is written: the graph alone, at any depth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from huge_sink import CountingSink
from huge_source import deepseek_v3, drawn_source, small_config
from reporting import PACKAGES, RESULTS, add_output, environment, keep, show

from moec.backends.onnx.writing import stream_model
from moec.backends.onnxruntime.lowering import lowered
from moec.cli.live import ConsoleProgress
from moec.execution.memory import OwnPeak, own_bytes
from moec.execution.streaming import check_finite
from moec.huggingface.saving.save import plan_hf
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.targets.backend import find_backend
from moec.targets.target import Target
from moec.weights.shards import stream_shards

SHARD_BYTES = 5 * 10**9
FORMS = ("onnx", "checkpoint")
SMALLEST = 5 * 10**9  # bytes of a checkpoint that stands in the fit


class Stages:
    """Seconds of the processor and on the wall, and memory, of each stage."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self.progress = ConsoleProgress()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage; its peak is of what the process has of its own, file pages apart."""
        self.progress.stage(name)
        wall, cpu = time.perf_counter(), time.process_time()
        with OwnPeak() as peak:
            yield
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.found[name] = {"cpu_s": cpu, "wall_s": wall, "peak_bytes": peak.bytes, "after_bytes": own_bytes()}
        self.progress.done(f"{cpu:.1f} s of the processor, peak {peak.bytes / 2**20:.0f} MiB")


def measure(size: str, dense: int, small: bool, forms: list[str]) -> dict[str, Any]:
    """Compile one size in this process. Without forms, the graph alone."""
    stages, sinks, (mixtures, experts) = Stages(), {}, map(int, size.split("x"))
    make = small_config if small else deepseek_v3
    with stages.stage("open"):
        source = drawn_source(make(dense + mixtures, n_routed_experts=experts, first_k_dense_replace=dense))
    with stages.stage("capture"):
        program = source.capture(torch.float32)
    if forms:
        total = sum(weight.size_bytes for weight in program.weights.values())
        with stages.stage("finite"):
            check_finite(program, lambda done, name: stages.progress.advance(done, total, "B", name))
    with stages.stage("passes"):
        named, _ = Pipeline.parse("quantize(bits=4)").run(program, Context(seed=0))
    if "onnx" in forms or not forms:
        sinks["onnx"] = write_onnx(named, stages, bool(forms))
    if "checkpoint" in forms:
        sinks["checkpoint"] = sink = CountingSink()
        with stages.stage("checkpoint"):
            stored = plan_hf(named, source).stored
            stream_shards(sink, stored, SHARD_BYTES)
    files = {name: {"bytes": sink.bytes, "sha256": sink.sha256, "hash_s": sink.hash_s} for name, sink in sinks.items()}
    case = f"{'small, ' if small else ''}{dense} + {size}"
    return {"size": case, "checkpoint_bytes": source.size_bytes, "tensors": len(source.origin.stored),
            "nodes": len(list(program.graph.nodes)), "stages": stages.found, "files": files}  # fmt: skip


def write_onnx(program: Program, stages: Stages, write: bool) -> CountingSink:
    """Lower to ONNX Runtime's graph, and write that with its weights."""
    target, sink = Target.parse("onnxruntime"), CountingSink()
    with stages.stage("lower"):
        legal, _ = find_backend(target).legalize(target).run(program, Context(seed=0))
        model, _ = lowered(legal, target)
    if write:
        with stages.stage("onnx"):
            stream_model(model, "model.onnx", sink, stages.progress)
    return sink


def fit(sizes: list[float], seconds: list[float]) -> dict[str, float]:
    """The line of least squares of seconds over bytes, and how far the worst of them lies from it."""
    slope, start = np.polyfit(sizes, seconds, 1)
    off = max(abs(s - slope * b - start) / s for b, s in zip(sizes, seconds, strict=True))
    return {"gigabytes_per_s": 1e-9 / slope, "start_s": float(start), "worst_residual": float(off)}


def rows_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures as the other benchmarks have them."""
    rows = []
    for run in found:
        case = run["size"]
        rows.append({"case": f"{case}: FP8 checkpoint", "value": run["checkpoint_bytes"], "unit": "B"})
        rows += [{"case": f"{case}: {name}", "value": run[name], "unit": ""} for name in ("tensors", "nodes")]
        for name, stage in run["stages"].items():
            rows += [
                {"case": f"{case}: {name}, CPU", "value": stage["cpu_s"], "unit": "s"},
                {"case": f"{case}: {name}, wall", "value": stage["wall_s"], "unit": "s"},
                {"case": f"{case}: {name}, peak anonymous RSS", "value": stage["peak_bytes"], "unit": "B"},
            ]
            if name in run["files"]:
                rate = run["checkpoint_bytes"] / stage["cpu_s"]
                rows.append({"case": f"{case}: {name}, input a CPU second", "value": rate, "unit": "B/s"})
        rows += [{"case": f"{case}: {name}, {key}", "value": value, "unit": {"bytes": "B", "hash_s": "s"}.get(key, "")}
                 for name, file in run["files"].items() if file["bytes"] for key, value in file.items()]  # fmt: skip
    for name in ("finite", *FORMS):
        runs = [run for run in found if name in run["stages"] and run["checkpoint_bytes"] >= SMALLEST]
        if len(runs) > 2:
            sizes, seconds = zip(*((r["checkpoint_bytes"], r["stages"][name]["cpu_s"]) for r in runs), strict=True)
            rows += [{"case": f"line through {len(runs)} sizes, {name}: {key}", "value": value, "unit": ""}
                     for key, value in fit(list(sizes), list(seconds)).items()]  # fmt: skip
    return [{**row, "who": "moec"} for row in rows]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["# DeepSeek-V3 at its real shape", "", "Dense layers + layers of experts x experts of each.", ""]
    lines += ["| what | figure |", "|---|---|"]
    return "\n".join([*lines, *(f"| {row['case']} | {_shown(row)} |" for row in rows)]) + "\n"


def _shown(row: dict[str, Any]) -> str:
    value, unit = row["value"], row["unit"]
    if isinstance(value, str):
        return f"`{value[:16]}`"
    scale = {"B": (1e9, "GB"), "B/s": (1e9, "GB/s")}.get(unit, (1, unit))
    return f"{value / scale[0]:.4g} {scale[1]}".strip()


def save(report: dict[str, Any]) -> None:
    """Put the runs beside earlier ones, in place of those of the same size and forms, and find the lines anew."""
    path = RESULTS / "huge_model.json"
    older = json.loads(path.read_text())["runs"] if path.exists() else []
    runs = {(run["size"], *sorted(run["files"])): run for run in [*older, *report["runs"]]}
    report = {**report, "runs": list(runs.values()), "rows": rows_of(list(runs.values()))}
    keep("huge_model", report, table(report["rows"]))


def main() -> None:
    """Read the command line, measure each size in its own process, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixtures", nargs="+", default=["1x64", "1x128", "1x256", "2x256"])
    parser.add_argument("--dense", type=int, default=1)
    parser.add_argument("--form", nargs="+", choices=FORMS, default=["onnx"])
    parser.add_argument("--small", action="store_true", help="the same architecture with 8 small experts")
    parser.add_argument("--graph", action="store_true", help="write no weights")
    parser.add_argument("--one", action="store_true", help="measure in this process, and print that as JSON")
    add_output(parser, "huge_model")
    asked = parser.parse_args()
    forms = [] if asked.graph else asked.form
    if asked.one:
        print(json.dumps(measure(asked.mixtures[0], asked.dense, asked.small, forms)))
        return
    found = []
    for size in asked.mixtures:
        command = [sys.executable, __file__, "--one", "--mixtures", size, "--dense", str(asked.dense)]
        command += ["--form", *asked.form]
        command += [f"--{name}" for name in ("small", "graph") if getattr(asked, name)]
        found.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
    report = {**environment((*PACKAGES, "onnx-ir")), "runs": found, "rows": rows_of(found)}
    if asked.save:
        save(report)
    show(report, table(report["rows"]), asked)


if __name__ == "__main__":
    main()
