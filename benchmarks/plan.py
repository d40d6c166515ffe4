"""What `moec plan --device cpu` says beside what is measured: decoders that moec compiles on this machine.

usage: python benchmarks/plan.py [--case "Llama A" …] [--only int4 …] [--visits 1] [--tokens 12] [--urgent]
    [--json] [--save]

Two dense models of Llama's shape and two mixtures, of Mixtral's and of Qwen3-MoE's, with random weights, 0.1 B
parameters each, so that a token is bound by memory. Each is compiled in five ways: float32, 8 and 4 bits, and both
with activations rounded to 8 bits. None of these sizes is among those that `moec probe` times. A token is timed at
batch 1 to 32, a prompt as one text and as several, by moec's own runner, after the caches were flushed.

The probe runs in the same process: one of its rounds before each visit to an engine, so that what else the machine
does meets both. What is measured is the lower quartile of all tokens (or prompts) of all visits, as in the probe. What
is predicted comes from the config alone. A pair is a dense model and a mixture, in the same form and situation: the
verdict is which of the two is faster; pairs that are within 3 % of each other count for both.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reporting import add_output, environment, put_out, under_machine

VOCABULARY, NEAR, EQUAL = 8000, 0.15, 0.03
TOKENS = ((1, 64), (1, 700), (2, 64), (4, 64), (8, 48), (16, 32), (32, 32))  # texts, tokens behind each
PROMPTS = ((1, 24), (1, 100), (1, 400), (3, 48))  # texts, tokens of each


@dataclass(frozen=True)
class Model:
    """A decoder; experts: 0 for a dense one."""

    hidden: int
    layers: int
    heads: int
    keys: int
    inner: int
    experts: int = 0
    top_k: int = 0
    kind: str = "Llama"

    def save(self, folder: Path) -> None:
        """Write it as a Hugging Face folder, with random weights."""
        import transformers

        shape: dict[str, Any] = {
            "vocab_size": VOCABULARY, "hidden_size": self.hidden, "num_hidden_layers": self.layers, "head_dim": 64,
            "num_attention_heads": self.heads, "num_key_value_heads": self.keys, "intermediate_size": self.inner,
            "max_position_embeddings": 4096, "tie_word_embeddings": True, "initializer_range": 0.05,
        }  # fmt: skip
        if self.kind == "Mixtral":
            shape |= {"num_local_experts": self.experts, "num_experts_per_tok": self.top_k, "sliding_window": None}
        if self.kind == "Qwen3Moe":
            shape |= {"num_experts": self.experts, "num_experts_per_tok": self.top_k, "norm_topk_prob": True}
            shape |= {"moe_intermediate_size": self.inner}
        torch.manual_seed(0)
        config = getattr(transformers, f"{self.kind}Config")(**shape)
        getattr(transformers, f"{self.kind}ForCausalLM")(config).save_pretrained(folder)


CASES = {
    "Llama A": Model(1024, 8, 16, 4, 2816),
    "Llama B": Model(896, 9, 14, 14, 2432),
    "Mixtral": Model(832, 5, 13, 13, 1152, 8, 2, "Mixtral"),
    "Qwen3-MoE": Model(640, 4, 10, 2, 320, 48, 6, "Qwen3Moe"),
}
FORMS = {"fp32": (32, False), "int8": (8, False), "int8 rounded": (8, True), "int4": (4, False),
         "int4 rounded": (4, True)}  # fmt: skip
Situation = tuple[str, str, str, int, int]  # case, form, "token" or "prompt", texts, tokens of each


# ---------------------------------------------------------------------- measuring
def situations() -> Iterator[tuple[str, int, int]]:
    yield from (("token", *sizes) for sizes in TOKENS)
    yield from (("prompt", *sizes) for sizes in PROMPTS)


def visit(
    probe: Any, engine: Any, what: str, texts: int, length: int, tokens: int, rng: np.random.Generator
) -> list[float]:
    """Seconds of each token after the prompt, or of prompts."""
    from moec.execution.generation import continuation

    found = []
    for _ in range(1 if what == "token" else max(2, min(6, 1200 // (texts * length))) + 1):
        text, ids = continuation(engine), rng.integers(3, VOCABULARY, (texts, length))
        found.append(seconds(probe, text, ids, np.ones((texts, length), np.int64)))
    if what == "prompt":
        return found[1:]
    found = []
    for n in range(tokens + 1):
        ids, mask = rng.integers(3, VOCABULARY, (texts, 1)), np.ones((texts, length + n + 1), np.int64)
        found.append(seconds(probe, text, ids, mask))
    return found[1:]


def seconds(probe: Any, text: Any, ids: Any, mask: Any) -> float:
    probe.cold()
    start = time.perf_counter()
    text.step(ids, mask)
    return time.perf_counter() - start


def measure(options: argparse.Namespace, work: Path) -> tuple[dict[Situation, list[float]], Any, dict[str, Any]]:
    """Times of every situation, the record of the probe's rounds among them, and the models' shapes."""
    from moec.compiler.open import described_kind, open_source
    from moec.timing.probe import Probe
    from moec.timing.probe_engines import Form, engine

    (work / "probe").mkdir(parents=True)
    probe, rng = Probe(work / "probe"), np.random.default_rng(0)
    note("the probe is ready")
    times: dict[Situation, list[float]] = {}
    shapes = {}
    for case in options.case:
        folder = work / case.replace(" ", "-")
        CASES[case].save(folder)
        shapes[case] = described_kind(folder).shape(str(folder))
        program = open_source(str(folder)).capture()
        for form in options.only:
            with torch.inference_mode(False):
                ready = engine(program, Form(form, *FORMS[form]), work / f"{folder.name}-{form}")
            for _ in range(options.visits):
                start = time.perf_counter()
                hurry(options.urgent)
                probe.round()
                for what, texts, length in situations():
                    key = (case, form, what, texts, length)
                    times.setdefault(key, []).extend(visit(probe, ready, what, texts, length, options.tokens, rng))
                hurry(False)
                time.sleep((time.perf_counter() - start) / 3 if options.urgent else 0.0)  # now it is the others' turn
            if options.keep:
                options.keep.write_bytes(pickle.dumps((times, dict(probe._times), shapes)))
            note(f"{case}, {form}: done")
            del ready
    return times, probe, shapes


def hurry(wanted: bool) -> None:
    """Put this session before others of the machine, or back beside them; only root may."""
    place = Path("/proc/self/autogroup")
    if place.exists() and os.geteuid() == 0:
        place.write_text("-15" if wanted else "0")


def note(text: str) -> None:
    print(f"{time.perf_counter() - START:5.0f} s  {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------- comparing
def rows_of(times: dict[Situation, list[float]], record: Any, shapes: dict[str, Any]) -> list[dict[str, Any]]:
    """Milliseconds measured and predicted, with the interval, of every situation."""
    from moec.planning.formats import find_format
    from moec.planning.on_cpu import ThisMachine
    from moec.timing.probe_fit import quiet

    rows = []
    for (case, form, what, texts, length), found in times.items():
        device = ThisMachine("cpu", 1.0, 1.0, {32: 1.0}, record=record, rounded=FORMS[form][1])
        said = device.time(shapes[case], find_format(form.split()[0]), texts, length, what == "token")
        assert said is not None
        name = f"{case}, {form}, {what}, {texts} x {length}"
        values = {"measured": quiet(found), "predicted": said.low / record.low, "low": said.low, "high": said.high}
        rows += [{"case": name, "who": w, "value": float(f"{1e3 * v:.4g}"), "unit": "ms"} for w, v in values.items()]
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shares: within 15 %, inside the interval, right verdicts; for all, and for what is worst."""
    value = {(r["case"], r["who"]): r["value"] for r in rows}
    cases = list(dict.fromkeys(r["case"] for r in rows))
    found = []
    for group in ("", *CASES, *FORMS, "token", "prompt"):
        own = [c for c in cases if not group or group in c.split(", ")]
        if own:
            ratios = [value[c, "measured"] / value[c, "predicted"] for c in own]
            inside = [value[c, "low"] <= value[c, "measured"] <= value[c, "high"] for c in own]
            shares = {"within 15 %": [abs(r - 1) <= NEAR for r in ratios], "inside the interval": inside}
            found += [share(group or "all", who, each) for who, each in shares.items()]
            found.append({"case": group or "all", "who": "measured over predicted", "value": float(np.median(ratios)),
                          "unit": "median ratio"})  # fmt: skip
    return [*found, share("all", "right verdicts", [verdict(value, *pair) for pair in pairs(cases)])]


def share(case: str, who: str, each: list[bool]) -> dict[str, Any]:
    return {"case": case, "who": who, "value": round(sum(each) / max(len(each), 1), 4), "unit": f"of {len(each)}"}


def pairs(cases: list[str]) -> Iterator[tuple[str, str]]:
    """A dense model and a mixture in the same form and situation."""
    dense = [name for name, model in CASES.items() if not model.experts]
    for one in cases:
        for other in cases:
            (a, rest), (b, same) = one.split(", ", 1), other.split(", ", 1)
            if rest == same and a in dense and b not in dense:
                yield one, other


def verdict(value: dict[tuple[str, str], float], dense: str, mixture: str) -> bool:
    real, said = (value[dense, who] / value[mixture, who] for who in ("measured", "predicted"))
    return abs(real - 1) <= EQUAL or (real > 1) == (said > 1)


def table(report: dict[str, Any]) -> str:
    """The report for people, as Markdown."""
    rows = report["rows"]
    whos = ("within 15 %", "inside the interval", "measured over predicted")
    value = {(r["case"], r["who"]): r for r in rows}
    lines = ["| | " + " | ".join(whos) + " |", "|---|" + "---|" * len(whos)]
    for group in dict.fromkeys(r["case"] for r in rows if r["who"] == whos[0]):
        shares = [f"{100 * value[group, w]['value']:.0f} % {value[group, w]['unit']}" for w in whos[:2]]
        lines.append(f"| {group} | {' | '.join(shares)} | {value[group, whos[2]]['value']:.2f} |")
    right = value["all", "right verdicts"]
    lines += [
        "",
        f"Dense or mixture, which is faster: right in {100 * right['value']:.0f} % {right['unit']} pairs.",
        "",
    ]
    lines += ["| ms | measured | predicted | interval |", "|---|---|---|---|"]
    for case in dict.fromkeys(r["case"] for r in rows if r["who"] == "measured"):
        m, p, low, high = (value[case, w]["value"] for w in ("measured", "predicted", "low", "high"))
        lines.append(f"| {case} | {m:.3g} | {p:.3g} | {low:.3g} to {high:.3g} |")
    return under_machine(report, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--only", nargs="+", choices=list(FORMS), default=list(FORMS), help="forms of the weights")
    parser.add_argument("--visits", type=int, default=1, help="to each engine, with a round of the probe before each")
    parser.add_argument("--tokens", type=int, default=12, help="that are timed in a visit")
    parser.add_argument("--urgent", action="store_true", help="on a shared machine: before others while it times")
    parser.add_argument("--keep", type=Path, help="write the probe's times and the engines' there, to look at them")
    add_output(parser, "plan")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="moec-bench-") as work:
        times, probe, shapes = measure(options, Path(work))
    rows = rows_of(times, probe.record(), shapes)
    report = {**environment(), "rows": [*summary(rows), *rows]}
    put_out("plan", report, table(report), options)


START = time.perf_counter()
if __name__ == "__main__":
    main()
