"""What of three fine-tunes is left in one model: `merge`, weight averaging, task arithmetic, and mergekit's gates.

usage: python benchmarks/merge.py BASE --models FOLDER [--seeds 1] [--steps 150] [--tokens 8192] [--judged 8]
    [--train kept full] [--save]

BASE is a Llama's folder. Its fine-tunes on C headers, manual pages and JSON are made in FOLDER unless they are there
(`merge_models.py`). A figure is the share of a fine-tune's gain that a model keeps on held-out files of its kind: the
base's loss less the model's, over the base's less the fine-tune's. `kept` fine-tunes leave the embeddings (and the head
that is tied to them) as they are, `full` ones train all weights.

`own expert` is each fine-tune's networks with the rest that `merge` takes: what routers without a mistake would keep.
Task arithmetic (arXiv 2212.04089) takes the best of three factors by the calibration texts. `mergekit, hidden` has the
base's rest, two experts a token, and as router rows the normalised means of what enters each layer at the last token of
prompts: its `gate_mode: hidden`, with the calibration texts' windows as prompts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from merge_models import KINDS, WINDOW, fine_tuned, write_texts
from reporting import Row, add_output, among_kept, environment, keep, show
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import moec
from moec.execution.streaming import StreamingEngine
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.decoder_signature import text_inputs
from moec.program.program import Program
from moec.weights.lazy import from_tensor

GAIN = "gain"
FACTORS = (0.5, 0.7, 1.0)
PROMPTS = 16


class Case:
    """One seed's fine-tunes with their texts."""

    def __init__(self, base: str, root: Path, seed: int, how: str, options: argparse.Namespace) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = root / str(seed)
        texts = write_texts(AutoTokenizer.from_pretrained(base), folder, seed)
        names = {kind: kind if how == "full" else f"kept-{kind}" for kind in KINDS}
        self.folders = {
            names[kind]: fine_tuned(
                base, texts[kind]["train"], folder / names[kind], options.steps, seed, embeddings=how == "full"
            )
            for kind in KINDS
        }
        self.val = {names[k]: windows(texts[k]["val"], options.judged) for k in KINDS}
        self.texts = {names[k]: texts[k]["calibration"] for k in KINDS}
        self.calibration = calibration(self.texts, options.tokens, seed)
        self.program = moec.capture(base, cache=False)
        self.model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self.base = {n: t.clone() for n, t in self.model.state_dict().items()}
        self.own = {
            name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
            for name, path in self.folders.items()
        }

    # ------------------------------------------------------------------ losses
    @torch.no_grad()
    def dense(self, state: dict[str, Tensor], ids: Tensor) -> float:
        """The loss of the base's architecture with other weights."""
        self.model.load_state_dict(state)
        return loss(lambda part: self.model(input_ids=part).logits, ids)

    def merged(self, how: str, tokens: Calibration | None = None) -> tuple[Program, dict[str, Any]]:
        sources = ", ".join(f"'{path}'" for path in self.folders.values())
        pipeline = Pipeline.parse(f"merge(sources=[{sources}], {how})")
        program, steps = pipeline.run(self.program, Context(calibration=tokens or self.calibration))
        return program, steps[0].facts

    def hidden_gates(self) -> Program:
        """The mixture as mergekit makes it."""
        program, _ = self.merged("rest=base, top_k=2", calibration(self.texts, 1024, 0))
        rows = [self._gates(text) for text in self.texts.values()]
        for layer in range(len(rows[0])):
            gates = normalize(torch.stack([row[layer] for row in rows]), dim=-1)
            program.weights[f"model.layers.{layer}.mlp.router.weight"] = from_tensor(gates, f"gates {layer}")
        return program

    @torch.no_grad()
    def _gates(self, text: Tensor) -> list[Tensor]:
        self.model.load_state_dict(self.base)
        states = self.model(input_ids=windows(text, PROMPTS), output_hidden_states=True).hidden_states
        return [state[:, -1].mean(0) for state in states[:-1]]

    # ------------------------------------------------------------------ the table
    def shares(self) -> Iterator[tuple[str, list[float], dict[str, Any]]]:
        """Method, the share of each fine-tune's gain, and what the pass reports."""
        names = list(self.folders)
        before = [self.dense(self.base, self.val[n]) for n in names]
        gained = [b - self.dense(self.own[n], self.val[n]) for b, n in zip(before, names, strict=True)]
        yield GAIN, gained, {"base": before}

        def kept(losses: list[float]) -> list[float]:
            return [(b - x) / g for b, x, g in zip(before, losses, gained, strict=True)]

        mean = {n: torch.stack([s[n].double() for s in self.own.values()]).mean(0).float() for n in self.base}
        yield "weight averaging", kept([self.dense(mean, self.val[n]) for n in names]), {}
        factor = min(FACTORS, key=self._calibrated)
        added = self._added(factor)
        yield "task arithmetic", kept([self.dense(added, self.val[n]) for n in names]), {"factor": factor}
        gates = StreamingEngine(self.hidden_gates())
        yield "mergekit, hidden", kept([streamed(gates, self.val[n]) for n in names]), {}
        program, facts = self.merged("top_k=1")
        rest = {n: program.weights[n].load() for n in self.base if n in program.weights}
        tied = {n: rest.get(n, rest.get("lm_head.weight", self.base[n])) for n in self.base if ".mlp." not in n}
        alone = [{**self.own[n], **tied} for n in names]
        yield "own expert", kept([self.dense(s, self.val[n]) for s, n in zip(alone, names, strict=True)]), {}
        engine = StreamingEngine(program)
        yield "merge", kept([streamed(engine, self.val[n]) for n in names]), facts

    def _added(self, factor: float) -> dict[str, Tensor]:
        return {n: b + factor * sum(s[n] - b for s in self.own.values()) for n, b in self.base.items()}

    def _calibrated(self, factor: float) -> float:
        state = self._added(factor)
        return sum(self.dense(state, windows(text, 2)) for text in self.texts.values())


def calibration(texts: dict[str, Tensor], tokens: int, seed: int) -> Calibration:
    parts = {n: Calibration(CalibrationText(n, tokens, WINDOW), "", t, seed=seed) for n, t in texts.items()}
    return Calibration(CalibrationText("all", tokens, WINDOW), "", torch.cat([*texts.values()]), seed=seed, parts=parts)


def windows(tokens: Tensor, count: int) -> Tensor:
    """Windows that stand apart in a text."""
    step = (len(tokens) - WINDOW) // count
    return torch.stack([tokens[k * step : k * step + WINDOW] for k in range(count)])


def streamed(engine: StreamingEngine, ids: Tensor) -> float:
    return loss(lambda part: engine.run(text_inputs(engine.inputs, part))["logits"], ids)


def loss(logits: Any, ids: Tensor) -> float:
    """The mean loss of the next token, in nats."""
    parts = [(logits(part), part) for part in ids.split(4)]  # type: ignore[no-untyped-call]
    found = [float(cross_entropy(x[:, :-1].flatten(0, 1), p[:, 1:].flatten())) * len(p) for x, p in parts]
    return sum(found) / len(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--train", nargs="+", default=["kept", "full"], choices=["kept", "full"])
    for name, value in (("seeds", 1), ("steps", 150), ("tokens", 8192), ("judged", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    add_output(parser, "merge")
    options = parser.parse_args()
    rows = []
    for how in options.train:
        found: dict[str, list[list[float]]] = {}
        facts: dict[str, Any] = {}
        for seed in range(options.seeds):
            for method, shares, said in Case(options.base, options.models, seed, how, options).shares():
                found.setdefault(method, []).append(shares)
                facts[method] = said
                print(how, seed, method, np.round(shares, 4).tolist(), file=sys.stderr, flush=True)
        for method, each in found.items():
            more = {"seeds": len(each), "tokens": options.tokens, "facts": facts[method]}
            for kind, column in zip(KINDS, zip(*each, strict=True), strict=True):
                unit = "nats a token" if method == GAIN else "of the gain"
                row = {"case": f"{how}, {kind}", "who": method, "value": statistics.mean(column), "unit": unit}
                rows.append({**row, **more})
        if options.save:  # a run that is stopped loses what it had not finished, and nothing else
            report = report_of(among_kept("merge", rows, lambda row: (row["case"], row["who"])), options)
            keep("merge", report, table(report["rows"]))
    show(report_of(rows, options), table(rows), options)


def table(rows: list[Row]) -> str:
    """Methods as lines, what the models were trained on as columns."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    value = {(row["case"], row["who"]): row["value"] for row in rows}
    lines = [
        "| shares of the gain (the gain: nats a token) | " + " | ".join(cases) + " |",
        "|---|" + "--:|" * len(cases),
    ]
    for who in dict.fromkeys(row["who"] for row in rows):
        cells = [f"{value[case, who]:.3f}" if (case, who) in value else "–" for case in cases]
        lines.append(f"| {who} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report_of(rows: list[Row], options: argparse.Namespace) -> dict[str, Any]:
    """The rows with the machine, the versions and how they were made."""
    settings = {name: getattr(options, name) for name in ("seeds", "steps", "tokens", "judged")}
    return {**environment(), "settings": settings, "rows": rows}


if __name__ == "__main__":
    main()
