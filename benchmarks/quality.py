"""What quantization and pruning cost on text: KL divergence, perplexity, top-1 and the router's choices, for every method in one harness.

usage: python benchmarks/quality.py [--model FOLDER] [--calibration FILE] [--text FILE] [--tokens 9216] [--seeds 3] [--only NAME …] [--json] [--save]

MODEL is a trained mixture of experts in a Hugging Face folder, made by any means; `train.npy` (or `train.txt`) and `val.npy` (or `val.txt`)
in it are the texts unless others are named. Without one, a byte-level Mixtral is trained for a few minutes on the Python library's sources
and kept in the temporary folder. Calibration never sees the text that is judged on.

Every row is a pipeline of passes on the captured program, computed in eager PyTorch in float32, so that rows differ in nothing but their
weights and routers; the tokens are the same for all (KL is paired). Rows with a calibration text are run with several seeds, which draw
other windows of it, and no more than allowed (`floor=0`): the mean and the standard deviation over the seeds are given; for rows with one run,
the standard error over windows. Experts
have the bits that a row names, everything else at least 4 (a tied head 8), routers their own precision. `3` is a grid of 3 bits whose codes
take 4 in memory, no kernel storing 3: its size is that of 4. A row whose pass or option is not there is named with the reason.

`--engines` also builds engines with ONNX Runtime: their size beside the arithmetic, and the time of a token beside the float32 engine's.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from moe_cpu import RESULTS, environment
from quality_model import trained
from torch import Tensor, fx

from moec.calibration import CalibrationText
from moec.corpus import corpus_of, read_calibration
from moec.decoder import LOGITS, text_inputs
from moec.errors import MoecError
from moec.pipeline import Context, Pipeline
from moec.program import Program
from moec.source import Source
from moec.sources import open_source
from moec.trace import EXPERTS, MOE, choice

WINDOW, BATCH = 256, 4
FIGURES = ("kl", "perplexity ratio", "top-1", "router set", "bytes")
CLAIMS = """EAC-MoE (arXiv 2508.01625), 3.03 bits an expert and PESF 0.3, four models of 14 to 47 B parameters, experts 97 % of the bytes:
bytes 4.92, 4.90, 4.55 and 4.28 times fewer than in 16 bits; 0.96, 1.31, 0.29 and 1.99 points of zero-shot accuracy lost (mean 1.14).
Its claim is 4 to 5 times, under 1.25 points. No zero-shot tasks are run here: top-1 agreement and perplexity stand in their place."""


@dataclass(frozen=True)
class Row:
    """A name and the passes that make it; `data` says that calibration windows, and so the seed, decide."""

    name: str
    pipeline: str
    data: bool = False


def _fitted(bits: int) -> Iterator[Row]:
    common = f"bits={max(bits, 4)}, experts={bits}, group=GROUP, method=gptq, floor=0"
    yield Row(f"{bits} bits GPTQ", f"quantize({common})", data=True)
    yield Row(f"{bits} bits GPTQ + router", f"quantize({common}), calibrate-router", data=True)


ROWS = [  # the quickest to say something first: `--save` writes after each
    *(Row(f"{bits} bits RTN", f"quantize(bits={max(bits, 4)}, experts={bits}, group=GROUP)") for bits in (8, 4, 3, 2)),
    *(row for bits in (4, 2, 3) for row in _fitted(bits)),
    Row("mix of 2 and 4, 3.0 bits", "quantize(bits=4, budget_bits=3.0, group=GROUP, method=gptq, floor=0)", data=True),
    Row("mix of 2 and 4, 3.0 bits + router", "quantize(bits=4, budget_bits=3.0, group=GROUP, method=gptq, floor=0), calibrate-router", data=True),
    Row("mix by frequency, 3.0 bits", "quantize(bits=4, budget_bits=3.0, sensitivity=frequency, group=GROUP, method=gptq, floor=0)", data=True),
    Row("6 of 8 experts, REAP", "prune-experts(keep=0.75)", data=True),
    Row("6 of 8 experts, frequency", "prune-experts(keep=0.75, score=frequency)", data=True),
    Row("6 of 8 experts, random", "prune-experts(keep=0.75, score=random)", data=True),
    Row("PESF 0.3", "skip-experts(alpha=0.3)"),
    Row("PESF 0.7", "skip-experts(alpha=0.7)"),
    *(Row(f"{bits} bits HQQ", f"quantize(bits={max(bits, 4)}, experts={bits}, group=GROUP, method=hqq)") for bits in (4, 3, 2)),
    Row("4 of 8 experts, REAP", "prune-experts(keep=0.5)", data=True),
    Row("4 of 8 experts, frequency", "prune-experts(keep=0.5, score=frequency)", data=True),
    Row("4 bits RTN + router", "quantize(bits=4, group=GROUP), calibrate-router", data=True),
    Row("2 bits RTN + router", "quantize(bits=4, experts=2, group=GROUP), calibrate-router", data=True),
    Row("2 bits GPTQ, zero points", "quantize(bits=4, experts=2, group=GROUP, symmetric=False, method=gptq, floor=0)", data=True),
]


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


def compare(reference: tuple[list[Tensor], list[list[Tensor]]], found: tuple[list[Tensor], list[list[Tensor]]], windows: Sequence[Tensor]) -> dict[str, float]:
    """The figures of one program, over all tokens that can be predicted; `spread` is the standard error of the KL over windows."""
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
        "kl": float(each.mean()), "spread": float(each.std() / math.sqrt(len(each))), "perplexity ratio": math.exp(float(torch.cat(loss).mean())),
        "top-1": float(torch.cat(same).mean()), "router set": statistics.mean(sets) if sets else math.nan,
    }  # fmt: skip


# ---------------------------------------------------------------------- rows
class Harness:
    """A model, its texts, and the programs that pipelines make of it; a pipeline that continues the one before it begins where that ended."""

    def __init__(self, source: Source, calibration: CalibrationText, text: str, tokens: int) -> None:
        self.source, self.calibration, self.captured = source, calibration, source.capture(torch.float32)
        self.windows = list(corpus_of(text, source).windows(WINDOW, tokens, BATCH))
        self.windows = [w for w in self.windows if w.shape[1] == WINDOW]
        self.reference = read(self.captured, self.windows)
        target = [ids[:, 1:, None] for ids in self.windows]
        self.perplexity = math.exp(-float(torch.cat([p[:, :-1].gather(-1, t).flatten() for p, t in zip(self.reference[0], target, strict=True)]).mean()))
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


def summary(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means over seeds, and the spread of the KL."""
    means = {name: statistics.mean(f[name] for f in found) for name in found[0]}
    return {**means, "spread": statistics.stdev(f["kl"] for f in found) if len(found) > 1 else found[0]["spread"], "seeds": len(found)}


def size_bytes(program: Program, widest: int = 8) -> int:
    """Bytes of all weights, shared ones once, with numbers of at most `widest` bytes."""
    return sum(math.prod(w.shape) * min(widest, w.dtype.itemsize) for w in {id(w): w for w in program.weights.values()}.values())


# ---------------------------------------------------------------------- engines
def engines(harness: Harness, group: int, rounds: int) -> list[dict[str, Any]]:
    """Files of engines beside the arithmetic, and a token's time beside the float32 engine's, in turns."""
    from moec.backends.onnxruntime import Onnxruntime
    from moec.target import Target

    target, backend, built, rows = Target.parse("onnxruntime"), Onnxruntime(), {}, []
    for who, pipeline in (("float32", ""), *((f"{bits} bits", f"quantize(bits={max(bits, 4)}, experts={bits}, group={group})") for bits in (8, 4, 2))):
        program = Pipeline.parse(pipeline).run(harness.captured, Context())[0]
        folder = Path(tempfile.mkdtemp(prefix="moec-quality-"))
        legal, _ = backend.legalize(target).run(program, Context())
        backend.build(legal, target, folder, "latency")
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        rows.append({"case": who, "who": "file", "value": size, "unit": "bytes"})
        rows.append({"case": who, "who": "file over arithmetic", "value": round(size / size_bytes(program), 4), "unit": "ratio"})
        built[who] = backend.load(folder, target)
    times: dict[str, list[float]] = {who: [] for who in built}
    for n in range(rounds + 3):
        ids = torch.tensor([[n % 97]])
        for who, engine in built.items():
            given = text_inputs(harness.captured.inputs, ids)
            start = time.perf_counter()
            engine(**given)
            times[who].append(time.perf_counter() - start)
    for who, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["float32"][3:], seconds[3:], strict=True))
        rows.append({"case": who, "who": "one token", "value": round(1e3 * statistics.median(seconds[3:]), 4), "unit": "ms"})
        rows.append({"case": who, "who": "one token", "value": round(ratio, 3), "unit": "times as fast as float32"})
    return rows


# ---------------------------------------------------------------------- report
def table(report: dict[str, Any]) -> str:
    """The report for people, as Markdown."""
    rows = report["rows"]
    value = {(r["case"], r["who"]): r["value"] for r in rows if r["who"] in (*FIGURES, "spread", "seeds", "seconds")}
    untouched = report["bytes"]
    lines = ["| | KL, nats a token (seeds) | perplexity | top-1 | router sets | bytes | s |", "|---|---|---|---|---|---|---|"]
    for case in dict.fromkeys(case for case, _ in value):
        kl, ratio, top, sets, size = (value[case, f] for f in FIGURES)
        kept = "–" if math.isnan(sets) else f"{100 * sets:.2f} %"
        lines.append(
            f"| {case} | {kl:.5f} ± {value[case, 'spread']:.5f} ({value[case, 'seeds']}) | × {ratio:.4f} | {100 * top:.2f} % | {kept} "
            f"| {untouched / size:.2f} times fewer | {value[case, 'seconds']:.0f} |"
        )
    built = [r for r in rows if r["who"] in ("file over arithmetic", "one token")]
    lines += ["", *(f"- engine, {r['case']}: {r['who']} {r['value']} {r['unit']}" for r in built)] if built else []
    lines += ["", *(f"- {r['case']}: left out, {r['value']}" for r in rows if r["who"] == "left out")]
    lines += ["", *(f"- {line}" for line in report["targets"]), "", CLAIMS]
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    head = f"{report['machine']['cpu']}, {report['machine']['cores']} cores; {versions}"
    return "\n".join([head, "", report["about"], "", *lines])


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """What was aimed at beside what was measured, whether it was reached or not."""
    value = {(r["case"], r["who"]): r["value"] for r in rows}
    found = []

    def say(what: str, reached: Callable[[], tuple[bool, str]]) -> None:
        try:
            ok, figures = reached()
        except KeyError as missing:
            found.append(f"{what}: not measured, there is no row {missing.args[0][0]!r}")
        else:
            found.append(f"{what}: {'reached' if ok else 'NOT reached'}, {figures}")

    def kl(case: str) -> float:
        return float(value[case, "kl"])

    say("8 bits, RTN: KL at most 0.002", lambda: (kl("8 bits RTN") <= 0.002, f"{kl('8 bits RTN'):.5f}"))
    best = min((c for c, w in value if c.startswith("4 bits") and w == "kl"), key=kl, default="4 bits GPTQ")
    for who, limit, unit in (("kl", 0.01, "KL at most 0.01"), ("top-1", 0.97, "top-1 at least 97 %"), ("router set", 0.95, "router sets at least 95 %")):
        say(
            f"4 bits, best method ({best}): {unit}",
            lambda who=who, limit=limit: ((value[best, who] <= limit) == (who == "kl"), f"{value[best, who]:.4f}"),  # type: ignore[misc]
        )
    for bits in (4, 3, 2):
        rtn, gptq = f"{bits} bits RTN", f"{bits} bits GPTQ"
        say(f"{bits} bits: GPTQ's KL at most half of RTN's", lambda rtn=rtn, gptq=gptq: (kl(gptq) <= 0.5 * kl(rtn), f"{kl(gptq) / kl(rtn):.2f} of it"))  # type: ignore[misc]
    for case in [c for c, w in value if c.endswith("+ router") and w == "kl"]:
        plain = case.removesuffix(" + router")
        say(
            f"{case}: more router sets kept than without",
            lambda case=case, plain=plain: (  # type: ignore[misc]
                value[case, "router set"] > value[plain, "router set"],
                f"{100 * value[plain, 'router set']:.2f} to {100 * value[case, 'router set']:.2f} %, KL {kl(plain):.5f} to {kl(case):.5f}",
            ),
        )
    mix, by_use = "mix of 2 and 4, 3.0 bits + router", "mix by frequency, 3.0 bits"
    say(
        "the mix with routers calibrated: within 15 % of 3 bits GPTQ", lambda: (kl(mix) <= 1.15 * kl("3 bits GPTQ"), f"{kl(mix) / kl('3 bits GPTQ'):.2f} of it")
    )
    say("the mix with routers calibrated: at most half of frequency's KL", lambda: (kl(mix) <= 0.5 * kl(by_use), f"{kl(mix) / kl(by_use):.2f} of it"))
    for keep in ("6 of 8 experts", "4 of 8 experts"):
        say(
            f"{keep}: REAP better than frequency",
            lambda keep=keep: (kl(f"{keep}, REAP") < kl(f"{keep}, frequency"), f"{kl(f'{keep}, REAP'):.4f}, {kl(f'{keep}, frequency'):.4f}"),  # type: ignore[misc]
        )
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", help="a trained mixture of experts in a Hugging Face folder; else one is trained")
    parser.add_argument("--minutes", type=float, default=4.0, help="to train for, without --model")
    parser.add_argument("--calibration", help="text or tokens to calibrate on; train.npy or train.txt of the folder by default")
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    parser.add_argument("--text", help="text or tokens to judge on; val.npy or val.txt of the folder by default")
    parser.add_argument("--tokens", type=int, default=9216)
    parser.add_argument("--seeds", type=int, default=3, help="of the calibration windows")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--only", nargs="+", help="rows whose names contain one of these")
    parser.add_argument("--engines", action="store_true", help="build engines too: file sizes, and the time of a token")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/quality.json and .md")
    return parser.parse_args()


def text_of(folder: Path, name: str) -> str:
    """A text that lies beside a model."""
    return next((str(folder / f"{name}{end}") for end in (".npy", ".txt") if (folder / f"{name}{end}").exists()), "")


def main() -> None:
    options = parse()
    folder = Path(options.model) if options.model else trained(Path(tempfile.gettempdir()) / "moec-quality-model", options.minutes)
    calibration, text = options.calibration or text_of(folder, "train"), options.text or text_of(folder, "val")
    if not calibration or not text:
        sys.exit(f"{folder} has no train.npy and val.npy: name texts with --calibration and --text")
    harness = Harness(open_source(str(folder), cache=False), CalibrationText(calibration, options.calibration_tokens, WINDOW), text, options.tokens)
    count = sum(w.shape[0] * (w.shape[1] - 1) for w in harness.windows)
    about = f"{'The model that was given' if options.model else 'The model that was trained here'}: {size_bytes(harness.captured) / 4e6:.1f} M numbers, "
    about += (
        f"{len(harness.reference[1][0])} mixtures, perplexity {harness.perplexity:.2f}. {count:,} tokens judged, {options.calibration_tokens:,} calibrated "
    )
    about += f"on, groups of {options.group}, symmetric unless said. Bytes: against the untouched model in 16 "
    about += "bits, scales in 16 too. In parentheses: runs, each with a seed; after ± their deviation, or one run's standard error over windows. Tokens that "
    about += (
        "reach the least and the most used expert of each mixture: " + ", ".join(f"{100 * c.min():.1f} and {100 * c.max():.0f} %" for c in harness.loads) + "."
    )
    report: dict[str, Any] = {**environment(), "about": about, "bytes": size_bytes(harness.captured, 2), "targets": [], "rows": []}
    chosen = [r for r in ROWS if not options.only or any(part in r.name for part in options.only)]
    found: dict[str, list[dict[str, float]]] = {}
    refused: dict[str, str] = {}
    for seed in range(options.seeds):  # all rows with one seed first
        for row in (r for r in chosen if r.name not in refused and (r.data or not seed)):
            try:
                figures = harness.measure(row.pipeline.replace("GROUP", str(options.group)), seed)
            except MoecError as error:
                refused[row.name] = error.what
            else:
                found.setdefault(row.name, []).append(figures)
                print(f"{row.name}, seed {seed}: {' '.join(f'{k} {v:.5g}' for k, v in figures.items())}", file=sys.stderr, flush=True)
            report["rows"] = rows_of(chosen, found, refused)
            save(report, options.save)
    if options.engines:
        report["rows"] += engines(harness, options.group, 40)
        save(report, options.save)
    print(json.dumps(report) if options.json else table(report))


def rows_of(chosen: Sequence[Row], found: Mapping[str, list[dict[str, float]]], refused: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each pipeline's figures so far, or why there are none."""
    rows: list[dict[str, Any]] = []
    for row in chosen:
        if row.name in found:
            rows += [{"case": row.name, "who": who, "value": value, "unit": _UNITS.get(who, "")} for who, value in summary(found[row.name]).items()]
        elif row.name in refused:
            rows.append({"case": row.name, "who": "left out", "value": refused[row.name], "unit": ""})
    return rows


def save(report: dict[str, Any], wanted: bool) -> None:
    """Judge what there is; write it where that was asked for."""
    report["targets"] = verdicts(report["rows"])
    if wanted:
        RESULTS.joinpath("quality.json").write_text(json.dumps(report, indent=1) + "\n")
        RESULTS.joinpath("quality.md").write_text(table(report) + "\n")


_UNITS = {"kl": "nats a token", "spread": "nats a token", "seconds": "s a seed", "bytes": "bytes"}


if __name__ == "__main__":
    main()
