"""What quantization and pruning cost on text: KL divergence, perplexity, top-1 and the router's choices, for every
method in one harness.

usage: python benchmarks/quality.py [--model FOLDER] [--steps 1000] [--calibration FILE] [--text FILE] [--tokens 10240]
       [--seeds 3] [--only NAME …] [--threads 1] [--json] [--save]

MODEL is a trained mixture of experts in a Hugging Face folder, made by any means; `train.npy` (or `train.txt`) and
`val.npy` (or `val.txt`) in it are the texts unless others are named. Without one, a byte-level Mixtral of 16 experts is
trained on the Python library's sources (`quality_model.py`) and kept in the temporary folder. Calibration never sees
the text that is judged on.

Every row is a pipeline of passes on the captured program, computed in eager PyTorch in float32, so that rows differ in
nothing but their weights and routers; the tokens are the same for all (KL is paired). Rows with a calibration text are
run with several seeds, which draw other windows of it, and no more than allowed (`floor=0`): the mean and the standard
deviation over the seeds are given; for rows with one run, the standard error over windows. `experts alone` leaves all
but the experts in 16 bits: these rows are the ones that compare methods and allocations, for what they share costs
nothing there. In the other rows everything else has at least 4 bits (a tied head 8). Routers keep their precision
everywhere. `3` is a grid of 3 bits whose codes take 4 in memory, no kernel storing 3: its size is that of 4. A row
whose pass or option is not there is named with the reason. The table ends with what was aimed at, and what papers
claim, beside what was found.

Engines of ONNX Runtime are built of four of the rows: their files' size beside the arithmetic.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from quality_model import trained
from quality_report import orders, table, targets
from quality_rows import BUILT, ROWS, Row
from reporting import add_output, environment, keep, show
from torch import Tensor, fx

from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.execution.choices import choice
from moec.frontend.source import Source
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.decoder_signature import LOGITS, text_inputs
from moec.program.moe_call import EXPERTS, MOE
from moec.program.program import Program
from moec.text.corpus import corpus_of, read_calibration

WINDOW, BATCH = 256, 4


# ---------------------------------------------------------------------- judging
class Judge(fx.Interpreter):
    """Runs a program with its weights in memory, and keeps which experts each token was given to."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.module())
        self.chosen: list[Tensor] = []
        self._unpacked: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.target is torch.ops.moec.dequantize.default:  # once, not for every batch
            if n.name not in self._unpacked:
                self._unpacked[n.name] = super().run_node(n)
            return self._unpacked[n.name]
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in (EXPERTS, MOE):
            weights, ids, count = choice(SimpleNamespace(target=target), args, kwargs)  # type: ignore[arg-type]  # it asks for the target alone
            self.chosen.append(torch.zeros(len(ids), count).scatter_add(-1, ids, weights.ne(0).float()) > 0)
        return super().call_function(target, args, kwargs)


@torch.inference_mode()
def read(program: Program, windows: Sequence[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Log-probabilities `[B, S, V]` of each batch of windows, and the experts that were chosen in each, by block."""
    judge, logs, chosen = Judge(program), [], []
    for ids in windows:
        given = text_inputs(program.inputs, ids)
        judge.chosen = []
        outputs = judge.run(*(given[i.name] for i in program.inputs), enable_io_processing=False)
        logs.append(dict(zip(program.outputs, outputs, strict=True))[LOGITS].float().log_softmax(-1))
        chosen.append(judge.chosen)
    return logs, chosen


def compare(
    reference: tuple[list[Tensor], list[list[Tensor]]],
    found: tuple[list[Tensor], list[list[Tensor]]],
    windows: Sequence[Tensor],
) -> dict[str, float]:
    """The figures of one program, over all tokens that can be predicted; `spread` is the standard error of the KL over
    windows."""
    kl, same, loss = [], [], []
    for p, q, ids in zip(reference[0], found[0], windows, strict=True):
        p, q, target = p[:, :-1], q[:, :-1], ids[:, 1:, None]
        kl.append((p.exp() * (p - q)).sum(-1).double())
        same.append((p.argmax(-1) == q.argmax(-1)).double())
        loss.append((p.gather(-1, target) - q.gather(-1, target)).squeeze(-1).double())
    each = torch.cat(kl).mean(-1)
    sets = [
        float((a == b).all(-1).double().mean())
        for one, two in zip(reference[1], found[1], strict=True)
        for a, b in zip(one, two, strict=True)
        if a.shape == b.shape
    ]
    return {
        "kl": float(each.mean()),
        "spread": float(each.std() / math.sqrt(len(each))),
        "perplexity ratio": math.exp(float(torch.cat(loss).mean())),
        "top-1": float(torch.cat(same).mean()),
        "router set": statistics.mean(sets) if sets else math.nan,
    }


# ---------------------------------------------------------------------- rows
class Harness:
    """A model, its texts, and the programs that pipelines make of it; a pipeline that continues the one before it
    begins where that ended."""

    def __init__(self, source: Source, calibration: CalibrationText, text: str, tokens: int) -> None:
        self.source, self.calibration, self.captured = source, calibration, source.capture(torch.float32)
        self.windows = list(corpus_of(text, source).windows(WINDOW, tokens, BATCH))
        self.windows = [w for w in self.windows if w.shape[1] == WINDOW]
        self.reference = read(self.captured, self.windows)
        target = [ids[:, 1:, None] for ids in self.windows]
        self.perplexity = math.exp(
            -float(
                torch.cat(
                    [p[:, :-1].gather(-1, t).flatten() for p, t in zip(self.reference[0], target, strict=True)]
                ).mean()
            )
        )
        self.loads = [torch.cat(block).float().mean(0) for block in zip(*self.reference[1], strict=True)]
        self._last: dict[int, tuple[str, Program, Context]] = {}

    def make(self, pipeline: str, seed: int) -> Program:
        """The program after a pipeline."""
        done, program, context = self._last.get(seed, ("", None, None))
        if not done or not pipeline.startswith(done + ","):
            done, program = "", self.captured
            context = Context(seed, calibration=read_calibration(self.calibration, self.source, seed))
        program, _ = Pipeline.parse(pipeline.removeprefix(done).lstrip(", ")).run(program, context)
        self._last[seed] = pipeline, program, context
        return program

    def measure(self, pipeline: str, seed: int) -> dict[str, float]:
        """The figures of a pipeline with one seed."""
        start = time.perf_counter()
        program = self.make(pipeline, seed)
        figures = compare(self.reference, read(program, self.windows), self.windows)
        return {**figures, "bytes": float(size_bytes(program, 2)), "seconds": time.perf_counter() - start}


def summary(found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The means over seeds, the spread of the KL, and the KL of each seed."""
    means: dict[str, Any] = {name: statistics.mean(f[name] for f in found) for name in found[0]}
    kls = [f["kl"] for f in found]
    return {
        **means,
        "spread": statistics.stdev(kls) if len(found) > 1 else found[0]["spread"],
        "seeds": len(found),
        "kl of each seed": kls,
    }


def size_bytes(program: Program, widest: int = 8) -> int:
    """Bytes of all weights, shared ones once, with numbers of at most `widest` bytes."""
    return sum(
        math.prod(w.shape) * min(widest, w.dtype.itemsize)
        for w in {id(w): w for w in program.weights.values()}.values()
    )


# ---------------------------------------------------------------------- engines
def engines(harness: Harness, group: int) -> list[dict[str, Any]]:
    """Files of engines beside the arithmetic: the codes and scales that the program holds, and what stays as it is in
    float32."""
    from moec.backends.onnxruntime import Onnxruntime
    from moec.targets.target import Target

    target, backend, rows = Target.parse("onnxruntime"), Onnxruntime(), []
    for row in (r for r in ROWS if r.name in BUILT):
        program = harness.make(row.pipeline.replace("GROUP", str(group)), 0)
        with tempfile.TemporaryDirectory(prefix="moec-quality-") as folder:
            legal, _ = backend.legalize(target).run(program, Context())
            backend.build(legal, target, Path(folder), "latency")
            size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
        rows.append({"case": row.name, "who": "file", "value": size, "unit": "bytes"})
        rows.append(
            {
                "case": row.name,
                "who": "file over arithmetic",
                "value": round(size / size_bytes(program), 4),
                "unit": "ratio",
            }
        )
    return rows


# ---------------------------------------------------------------------- report
def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", help="a trained mixture of experts in a Hugging Face folder; else one is trained")
    parser.add_argument("--steps", type=int, default=1000, help="to train for, without --model")
    parser.add_argument(
        "--calibration", help="text or tokens to calibrate on; train.npy or train.txt of the folder by default"
    )
    parser.add_argument("--calibration-tokens", type=int, default=12288)
    parser.add_argument("--text", help="text or tokens to judge on; val.npy or val.txt of the folder by default")
    parser.add_argument("--tokens", type=int, default=10240)
    parser.add_argument("--seeds", type=int, default=3, help="of the calibration windows")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--only", nargs="+", help="rows whose names contain one of these")
    parser.add_argument(
        "--threads", type=int, default=1, help="matrices of the model that is trained here are too small for more"
    )
    add_output(parser, "quality")
    return parser.parse_args()


def text_of(folder: Path, name: str) -> str:
    """A text that lies beside a model."""
    return next((str(folder / f"{name}{end}") for end in (".npy", ".txt") if (folder / f"{name}{end}").exists()), "")


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    folder = (
        Path(options.model)
        if options.model
        else trained(Path(tempfile.gettempdir()) / "moec-quality-model", options.steps)
    )
    calibration, text = options.calibration or text_of(folder, "train"), options.text or text_of(folder, "val")
    if not calibration or not text:
        sys.exit(f"{folder} has no train.npy and val.npy: name texts with --calibration and --text")
    options.texts = str(folder), calibration, text
    harness = harness_of(options)
    report: dict[str, Any] = {
        **environment(),
        "about": about(harness, options),
        "bytes": size_bytes(harness.captured, 2),
    }
    chosen = [r for r in ROWS if not options.only or any(part in r.name for part in options.only)]
    found: dict[str, dict[int, dict[str, float]]] = {}
    refused: dict[str, str] = {}
    for row, seed, figures in measured(options, chosen):
        if isinstance(figures, str):
            refused[row] = figures
        else:
            found.setdefault(row, {})[seed] = figures
            print(
                f"{row}, seed {seed}: {' '.join(f'{k} {v:.5g}' for k, v in figures.items())}",
                file=sys.stderr,
                flush=True,
            )
        report["rows"] = rows_of(chosen, {name: [of[k] for k in sorted(of)] for name, of in found.items()}, refused)
        save(report, options.save)
    if not options.only:
        report["rows"] += engines(harness, options.group)
        save(report, options.save)
    show(report, table(report), options)


def harness_of(options: argparse.Namespace) -> Harness:
    model, calibration, text = options.texts
    return Harness(
        open_source(model, cache=False),
        CalibrationText(calibration, options.calibration_tokens, WINDOW),
        text,
        options.tokens,
    )


def about(harness: Harness, options: argparse.Namespace) -> str:
    """What was measured, in words."""
    whose = "given" if options.model else f"trained here for {options.steps} steps"
    loads = ", ".join(f"{100 * c.min():.1f} and {100 * c.max():.0f} %" for c in harness.loads)
    judged = sum(w.shape[0] * (w.shape[1] - 1) for w in harness.windows)
    return (
        f"The model that was {whose}: {size_bytes(harness.captured) / 4e6:.1f} M numbers, {len(harness.loads)} "
        f"mixtures of {len(harness.loads[0])} experts, perplexity {harness.perplexity:.2f}. {judged:,} tokens judged, "
        f"{options.calibration_tokens:,} calibrated on, groups of {options.group}, symmetric unless said. Bytes: "
        "against the untouched model in 16 bits, scales in 16 too. In parentheses: runs, each with a seed; after ± "
        "their deviation, or one run's standard error over windows. Tokens that reach the least and the most used "
        f"expert of each mixture: {loads}."
    )


def measured(options: argparse.Namespace, rows: Sequence[Row]) -> Iterator[tuple[str, int, dict[str, float] | str]]:
    """Rows, seeds and figures as they come, or why there are none; each seed in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    people = [
        context.Process(target=serve, args=(seed, options, rows, queue), daemon=True) for seed in range(options.seeds)
    ]
    for person in people:
        person.start()
    left = len(people)
    while left:
        item = queue.get()
        left -= item is None
        if item is not None:
            yield item


def serve(seed: int, options: argparse.Namespace, rows: Sequence[Row], queue: Any) -> None:
    """The rows of one seed; those that no seed changes come from the first."""
    torch.set_num_threads(options.threads)
    try:
        harness = harness_of(options)
        for row in (r for r in rows if r.data or not seed):
            try:
                queue.put((row.name, seed, harness.measure(row.pipeline.replace("GROUP", str(options.group)), seed)))
            except MoecError as error:
                queue.put((row.name, seed, error.what))
    finally:
        queue.put(None)


def rows_of(
    chosen: Sequence[Row], found: Mapping[str, list[dict[str, float]]], refused: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Each pipeline's figures so far, or why there are none."""
    rows: list[dict[str, Any]] = []
    for row in chosen:
        if row.name in found:
            rows += [
                {"case": row.name, "who": who, "value": value, "unit": _UNITS.get(who, "")}
                for who, value in summary(found[row.name]).items()
            ]
        elif row.name in refused:
            rows.append({"case": row.name, "who": "left out", "value": refused[row.name], "unit": ""})
    return rows


def save(report: dict[str, Any], wanted: bool) -> None:
    """Judge what there is; write it where that was asked for."""
    report["targets"], report["orders"] = targets(report["rows"]), orders(report["rows"])
    if wanted:
        keep("quality", report, table(report))


_UNITS = {"kl": "nats a token", "spread": "nats a token", "seconds": "s a seed", "bytes": "bytes"}


if __name__ == "__main__":
    main()
