"""Decoders with weights of 4 bits on this machine's CPU: moec's engines beside its float32 one, and beside other tools'
quantized exports.

usage: python benchmarks/quantized_decoder_cpu.py [--case moe dense] [--only "llama.cpp q4_0" …] [--rounds 4]
    [--sittings 2] [--patience 1] [--limit 600] [--json] [--save]

Models, processes and rounds are those of `decoder_cpu.py`; what is timed is the median of 24 tokens after a prompt of
64, at batch 1. moec quantizes by `quantize(bits=4, group=64)`: experts and linear layers 4 bits, the tied head 8,
routers as they are. `rounded` engines round activations to 8 bits (the target's `accuracy=int8`), which is what
onnxruntime-genai's builder does by default, and llama.cpp always; `like builder` has groups of 32 and a head of 4 bits,
as that builder's models have. onnxruntime-genai's builder has no Qwen3-MoE; transformers' OnnxExporter has no weights
of 4 bits, so its 8 bits stand here.

`read 4` sums as many bytes as one token needs of moec's packed weights (all but the experts that are not chosen),
`read` of the float32 ones: no engine can be faster. A ratio is the median over the rounds of (that contestant's time /
another's in the same round). moec's engines are compared with the very program that they were built from; of the others
their distance from the untouched model is printed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import decoder_contestants
import numpy as np
import torch
from decoder_contestants import DENSE_ONLY, MOE_ONLY, Run, continued, once
from decoder_cpu import TOKENS
from decoder_models import CASES, VOCABULARY
from decoder_sittings import SHORT, Benchmark, Contestant, Measured, Times
from moe_cpu import wait_for_quiet

from moec.execution.engine import EagerEngine
from moec.program.program import Program

INT4, LIKE_BUILDER = "quantize(bits=4, group=64)", "quantize(bits=4, group=32, lm_head=4)"
EXACT, ROUNDED = 1e-3, 0.25  # max |d|/std from the program that an engine was built from


def quantized(folder: Path, pipeline: str) -> Program:
    """The decoder with its cache, after a pipeline."""
    from moec import api
    from moec.pipeline.passes import Context
    from moec.pipeline.pipeline import Pipeline

    return Pipeline.parse(pipeline).run(api.open_source(str(folder)).capture(), Context())[0]


def engine(folder: Path, pipeline: str = "", accuracy: str = "exact") -> Run:
    """moec's engine of a pipeline; wrong numbers are an error."""
    from moec.backends.onnxruntime import Onnxruntime
    from moec.execution.generation import continuation
    from moec.pipeline.passes import Context
    from moec.targets.target import Target

    target, backend = Target.parse(f"onnxruntime:accuracy={accuracy}"), Onnxruntime()

    def build(out: Path) -> None:
        program = quantized(folder, pipeline)
        legal, _ = backend.legalize(target).run(program, Context())
        out.mkdir()
        backend.build(legal, target, out, "latency")
        ids, mask = np.arange(3, 19)[None], np.ones((1, 16), np.int64)
        want, found = (continuation(e).step(ids, mask)[0] for e in (EagerEngine(program), backend.load(out, target)))
        error = float(abs(found - want).max() / want.std())
        assert error < (ROUNDED if accuracy == "int8" else EXACT), (
            f"the engine is {error:.2g} standard deviations from its program"
        )

    return continued(backend.load(once(folder, f"moec {accuracy} {pipeline}", build), target))


def reader(folder: Path, pipeline: str = "") -> Run:
    """Summing as many bytes as a token needs, always others of as many as the model has."""
    from transformers import AutoConfig

    program, config = quantized(folder, pipeline), AutoConfig.from_pretrained(folder)
    share = getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_experts", 1)
    weights = {id(w): (n, w.size_bytes) for n, w in program.weights.items()}.values()
    active = int(sum(size * (share if ".experts." in name else 1) for name, size in weights)) // 4
    memory, state = torch.ones(max(active, sum(size for _, size in weights) // 4)), {"at": 0}

    def step(_token: int) -> Any:
        state["at"] = state["at"] + active if state["at"] + 2 * active <= len(memory) else 0
        return memory[state["at"] : state["at"] + active].sum()[None].expand(VOCABULARY).numpy()

    return (lambda _ids: step(0)), step


PEOPLE: dict[str, Callable[[Path], Run]] = {
    "moec": engine,
    "moec int4": partial(engine, pipeline=INT4),
    "moec int4 rounded": partial(engine, pipeline=INT4, accuracy="int8"),
    "moec int4 rounded, like builder": partial(engine, pipeline=LIKE_BUILDER, accuracy="int8"),
    "moec int4, like builder": partial(engine, pipeline=LIKE_BUILDER),
    "genai builder int4": lambda folder: decoder_contestants.genai(folder, True, "int4"),
    "genai builder int4 exact": lambda folder: decoder_contestants.genai(folder, True, "int4", "accuracy_level=1"),
    "OnnxExporter int8": lambda folder: decoder_contestants.transformers_engine(folder, int8=True),
    "llama.cpp q4_0": lambda folder: decoder_contestants.llama_cpp(folder, q4=True),
    "eager": decoder_contestants.eager,
    "read": reader,
    "read 4": partial(reader, pipeline=INT4),
}
BASES = ("moec", "moec int4", "moec int4 rounded", "read 4")
decoder_contestants.CONTESTANTS.update(PEOPLE)  # the processes find them there


def measure(people: dict[str, Contestant], rounds: int, patience: float) -> Measured:
    """Seconds of a token, round by round, and how far each contestant's logits are from eager's, at the most."""
    rng = np.random.default_rng(0)
    times: Times = {who: {"decode": []} for who in people}
    errors = {who: 0.0 for who in people if not who.startswith("read")}
    for n in range(rounds):
        text, tokens = rng.integers(3, VOCABULARY, (1, SHORT)), rng.integers(3, VOCABULARY, TOKENS).tolist()
        logits, order = {}, list(people)
        for who in order[n % len(order) :] + order[: n % len(order)]:
            wait_for_quiet(patience)
            seconds, logits[who] = people[who].run(text, tokens)
            times[who]["decode"] += [statistics.median(seconds[1:])]
        for who in errors:
            errors[who] = max(errors[who], float(abs(logits[who] - logits["eager"]).max() / logits["eager"].std()))
    return times, errors


def rows_of(case: str, times: Times, errors: dict[str, float], absent: dict[str, str]) -> list[dict[str, Any]]:
    """Milliseconds of a token, ratios to those of `BASES`, and distances from eager."""
    rows: list[dict[str, Any]] = [
        {"case": case, "who": who, "value": None, "unit": f"absent: {why}"} for who, why in absent.items()
    ]
    rows += [
        {"case": case, "who": who, "value": float(f"{e:.2g}"), "unit": "std from eager"} for who, e in errors.items()
    ]
    for who, found in times.items():
        rows.append(
            {"case": case, "who": who, "value": round(1e3 * statistics.median(found["decode"]), 3), "unit": "ms"}
        )
        for base in (b for b in BASES if b in times):
            ratio = statistics.median(s / b for s, b in zip(found["decode"], times[base]["decode"], strict=True))
            rows.append({"case": case, "who": who, "value": round(ratio, 3), "unit": f"x {base}"})
    return rows


def table(report: dict[str, Any]) -> list[str]:
    """The report for people, as Markdown."""
    rows, lines = report["rows"], list[str]()
    value = {(r["case"], r["who"], r["unit"]): r["value"] for r in rows}
    for case in dict.fromkeys(r["case"] for r in rows):
        lines += [
            f"{CASES[case].title}",
            "",
            "| | tokens/s | " + " | ".join(f"time over {b}'s" for b in BASES) + " |",
            "|---|---|" + "---|" * len(BASES),
        ]
        for who in dict.fromkeys(w for c, w, unit in value if c == case and unit == "ms"):
            ratios = " | ".join(f"{value[case, who, f'x {b}']:.2f}" for b in BASES)
            lines.append(f"| {who} | {1e3 / value[case, who, 'ms']:.1f} | {ratios} |")
        lines += ["", *(f"- {r['who']} {r['unit']}" for r in rows if r["case"] == case and r["value"] is None)]
        lines += [
            f"- {r['who']}: {r['value']:g} standard deviations from eager"
            for r in rows
            if r["case"] == case and r["unit"] == "std from eager"
        ]
        lines.append("")
    return lines


if __name__ == "__main__":
    Benchmark(
        name="quantized_decoder_cpu",
        about=__doc__,
        cases=CASES,
        people=tuple(PEOPLE),
        always=(*BASES, "eager", "read"),
        measure=measure,
        rows_of=rows_of,
        table=table,
        unfit={"moe": (*DENSE_ONLY, "genai builder int4", "genai builder int4 exact"), "dense": MOE_ONLY},
    ).run()
