"""The whole zoo, compiled with its state and tried beside eager PyTorch: the table of docs/models.md.

`python -m tests.zoo_table` compiles every model, each in a process of its own, and prints a row a model; `--only NAME`
does it for some, `--json FILE` keeps rows and takes up those that it has, `--write` puts the table into the page.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from textwrap import wrap
from typing import Any

from tests import whole_zoo, zoo, zoo_parts
from tests.cases import UPCYCLE

FORMS = {"kernel": "MoE kernel", "kernel, portable routing": "MoE kernel, routing apart", "grouped": "grouped GEMM"}
BOUND, LIMIT_S, SEED = 1e-3, 900, 77
TRIED = "--no-cache, with which it was captured"  # of a refusal's way out
ALONE = "Right without a cache (`--no-cache`), each token then runs the whole text; with one, in moec's own words:"
PAGE = Path(__file__).parents[1] / "docs/models.md"
START, END = "<!-- support table -->\n", "\n<!-- end of support table -->"
# rows and tokens of the trials: one token, an ordinary batch, and more tokens than the model's context or any window
SIZES = ((1, 1), (3, 19), (2, whole_zoo.CONTEXT + 7))
CALLS = ((0, 5), *((n, n + 1) for n in range(5, 17)))  # tokens of each, where a text goes on token by token
GROUPS = {
    "Mixtures of experts": lambda: whole_zoo.names(),
    "Dense models with other states": lambda: whole_zoo.names(hybrid=True),
    "Dense models, upcycled": lambda: sorted(zoo.architectures(dense=True)),
    "An encoder and a decoder": zoo_parts.names,
    "With code of its own": lambda: sorted(zoo_parts.OWN_CODE),
}


@dataclass(frozen=True)
class Row:
    """What became of one model.

    Attributes:
        name: its key in the zoo. architecture: the class that its config names.
        verdict: `right`, `alone` (its forward is right, without the cache that moec refuses), `wrong`, `refused` (with
            an error's code), `failed` (an internal error, or no end) or `not run`.
        states: what the engine carries from token to token. lowering: how its mixtures run.
        error: largest error beside eager, over the spread of the output, in the proof and in the trials here.
        experts: reached and all. said: the code and the reason of a refusal, or what the trials found.
    """

    name: str
    architecture: str
    verdict: str
    states: tuple[str, ...] = ()
    lowering: tuple[str, ...] = ()
    error: float = 0.0
    experts: tuple[int, int] = (0, 0)
    said: str = ""

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Row:
        """A row as JSON holds it."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()})

    def cells(self) -> tuple[str, ...]:
        """The cells of its row in the table."""
        if self.verdict != "right":
            return self.architecture, self.verdict, self.said
        reached = f"{self.experts[0]}/{self.experts[1]}" if self.experts[1] else "—"
        states, forms = ", ".join(self.states) or "none", ", ".join(self.lowering) or "—"
        return self.architecture, states, forms, reached, f"{self.error:.0e}"


def measured(name: str, folder: Path) -> Row:
    """Compile a model of the zoo and try its engine; a refusal is a result."""
    import moec

    model, architecture = whole_zoo.save(name, folder / "model"), whole_zoo.architecture(name)
    refusal = ""
    try:
        try:
            pipeline = UPCYCLE if name in zoo.architectures(dense=True) else ""
            report = compiled(model, folder / "engine", pipeline, trust_remote_code=name in zoo_parts.OWN_CODE)
        except moec.MoecError as error:
            if TRIED not in error.fix:
                raise
            refusal = f"{error.code}: {error.what}".replace(str(folder), "")
            report = compiled(model, folder / "engine", "", cache=False)
    except moec.MoecError as error:
        verdict = "failed" if error.exit_code == 70 else "refused"
        return Row(name, architecture, verdict, said=f"{error.code}: {error.what}".replace(str(folder), ""))
    engine, two = moec.load(folder / "engine"), name in zoo_parts.names()
    tried, said = (zoo_parts.trials if two else trials)(folder / "model", engine)
    reports = zoo_parts.reports_of(folder / "engine") if two else [report]
    blocks = [block for each in reports for block in each.facts["blocks"]]
    return Row(
        name,
        architecture,
        ("alone" if refusal else "right") if tried <= BOUND else "wrong",
        (zoo_parts.states_of if two else states_of)(engine),
        tuple(dict.fromkeys(FORMS.get(b["formulation"], b["formulation"]) for b in blocks)),
        max(report.comparison.worst.deviation, tried),
        (sum(r.proof.coverage.reached for r in reports), sum(r.proof.coverage.total for r in reports)),
        refusal or said,
    )


def compiled(model: str, out: Path, pipeline: str, **more: Any) -> Any:
    """The report of a compile; a model of images is compiled for text alone, as the refusal of its inputs says."""
    import moec

    trusted = bool(more.get("trust_remote_code"))
    seeing = "vision" in moec.open_source(model, trust_remote_code=trusted).parts()
    leave_out = ["pixel_values*"] if seeing else []
    try:
        return moec.compile(model, pipeline=pipeline, out=out, leave_out=leave_out, **more)
    except moec.MoecError as error:
        if error.code != "M216":
            raise
        given_up = [*leave_out, *without(error.fix)]
        return moec.compile(model, pipeline=pipeline, out=out, leave_out=given_up, **more)


def without(fix: str) -> list[str]:
    """The inputs that the first way out of a refusal leaves out; a second one may make another engine."""
    return re.findall(r"--leave-out (\S+?)(?:;|$|\s)", fix)[0].split(",")


def states_of(engine: Any) -> tuple[str, ...]:
    """The kinds of an engine's states, by the last part of their names; with how many of a kind a layer has."""
    layers: dict[str, list[str]] = {}
    for name in (i.name for i in engine.inputs if i.name.startswith("past_key_values.")):
        layers.setdefault(name.split(".")[1], []).append(re.sub(r"_\d+$", "", name.split(".")[-1]).replace("_", " "))
    layers = {layer: [_without_owner(kind, kinds) for kind in kinds] for layer, kinds in layers.items()}
    most = {kind: max(kinds.count(kind) for kinds in layers.values()) for kinds in layers.values() for kind in kinds}
    named = {"keys and values": 1} if {"key", "value"} <= most.keys() else {}
    rest = {kind: count for kind, count in most.items() if not named or kind not in ("key", "value")}
    return tuple(kind if count == 1 else f"{count} × {kind}" for kind, count in (named | rest).items())


def _without_owner(kind: str, kinds: list[str]) -> str:
    """An indexer's own copy of a layer's state is of that state's kind; its key has no value, and is a kind alone."""
    twin = kind.removeprefix("index ")
    return twin if twin in kinds and twin != "key" else kind


def trials(folder: Path, engine: Any) -> tuple[float, str]:
    """The largest error of an engine beside eager made anew (sizes beyond the model's bounds in one go, and a text
    token by token), and what the engine would not take."""
    import torch

    import moec

    model, worst, said = eager(folder), 0.0, []
    generator = torch.Generator().manual_seed(SEED)
    for batch, length in SIZES:
        inputs = _inputs(engine, batch, length, generator)
        error = _beside(model, engine, inputs)
        worst, said = (max(worst, error), said) if isinstance(error, float) else (worst, [*said, error])
    if any(i.name.startswith("past_key_values.") for i in engine.inputs):
        try:
            worst = max(worst, _token_by_token(model, engine, generator))
        except moec.MoecError as error:
            worst, said = math.inf, [*said, f"{error.code} token by token: {error.what}"]
    return worst, "; ".join(said)


def eager(folder: Path) -> Any:
    """The untouched model from its folder, in float32; its own code is the tests'."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    kind: Any = getattr(transformers, config.architectures[0], transformers.AutoModel)
    return kind.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()


def _inputs(engine: Any, batch: int, length: int, generator: Any) -> dict[str, Any]:
    """Drawn tokens, every row but the first with padding on the left; drawn pixels for a model of images."""
    import torch

    names = {i.name for i in engine.inputs}
    if "pixel_values" in names:
        spec = next(i for i in engine.inputs if i.name == "pixel_values")
        shape = [batch, *(n if isinstance(n, int) else 24 for n in spec.shape[1:])]
        return {"pixel_values": torch.randn(shape, generator=generator)}
    mask = torch.ones((batch, length), dtype=torch.int64)
    for row in range(1, batch):
        mask[row, : min(2 * row, length - 1)] = 0
    given = {"input_ids": torch.randint(3, zoo.VOCAB, (batch, length), generator=generator), "attention_mask": mask}
    if "token_type_ids" in names:
        given["token_type_ids"] = torch.zeros_like(mask)
    return given


def _beside(model: Any, engine: Any, inputs: dict[str, Any]) -> float | str:
    """Error of the first output beside eager's, padding left out; the refusal where the engine takes no such sizes."""
    import torch

    import moec
    from moec.program.decoder_signature import cache_inputs, positions

    mask, more = inputs.get("attention_mask"), {}
    if mask is not None and cache_inputs(engine.inputs):
        more = {"position_ids": positions(mask, mask.shape[1])}
    with torch.inference_mode():
        want = model(**inputs, **more)[0]
    try:
        got = next(iter(engine(**inputs).values()))
    except moec.MoecError as error:
        return f"{error.code} at {list(next(iter(inputs.values())).shape)}: {error.what}"
    real = mask.bool() if mask is not None and want.shape[:2] == mask.shape else ...
    return float((got[real] - want[real]).abs().max() / want[real].std(correction=0).clamp(min=1e-6))


def _token_by_token(model: Any, engine: Any, generator: Any) -> float:
    """Error of the last logits of a padded batch: a prompt of 5 tokens, then 12 tokens, one at a time.

    Beside one go; where that differs, beside the same calls of the untouched model. Padding on the left moves
    DeepSeek-V4's groups, so that transformers' own answer hangs on where a text was cut.
    """
    import torch

    from moec.execution.generation import continuation
    from moec.program.decoder_signature import positions

    inputs, text = _inputs(engine, 2, 17, generator), continuation(engine)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    got = torch.stack(
        [torch.from_numpy(text.step(ids[:, a:b].numpy(), mask[:, :b].numpy()).copy()) for a, b in CALLS], 1
    )
    with torch.inference_mode():
        want = model(**inputs, position_ids=positions(mask, 17), use_cache=False)[0]
    error = float((got - want[:, 4:]).abs().max() / want.std())
    return error if error <= BOUND else float((got - continued(model, ids, mask)).abs().max() / want.std())


def continued(model: Any, ids: Any, mask: Any) -> Any:
    """The last logits of each of these calls of the untouched model, `[batch, calls, vocabulary]`."""
    import torch

    from moec.program.decoder_signature import positions

    places, past, found = positions(mask, mask.shape[1]), None, []
    for a, b in CALLS:
        with torch.inference_mode():
            made = model(
                input_ids=ids[:, a:b], attention_mask=mask[:, :b], position_ids=places[:, a:b], past_key_values=past,
                use_cache=True,
            )  # fmt: skip
        past = made.past_key_values
        found.append(made.logits[:, -1])
    return torch.stack(found, 1)


def rows(names: Sequence[str], limit_s: int = LIMIT_S) -> Iterator[Row]:
    """Every model in a process of its own, which has so many seconds."""
    for name in names:
        command = [sys.executable, "-m", "tests.zoo_table", "--row", name]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
            last = (ended.stdout.strip().splitlines() or [""])[-1]
            killed = f"\nkilled by signal {-ended.returncode}" if ended.returncode < 0 else ""
            yield Row.of(json.loads(last)) if last.startswith("{") else _failed(name, ended.stderr + killed)
        except subprocess.TimeoutExpired:
            yield _failed(name, f"no end after {limit_s} s")


def _failed(name: str, error: str) -> Row:
    lines = error.strip().splitlines() or ["it ended without a word"]
    last = next((line for line in reversed(lines) if re.match(r"\w+(\.\w+)*(Error|Exception)\b", line)), lines[-1])
    return Row(name, whole_zoo.architecture(name), "failed", said=last[:300])


def table(found: Sequence[Row]) -> str:
    """The tables in Markdown, one a group, with date, versions and counts before, and moec's own words for every model
    that is not right behind."""
    right, alone = ([r for r in found if r.verdict == verdict] for verdict in ("right", "alone"))
    others = [row for row in found if row not in (*right, *alone)]
    packages = ", ".join(f"{n} {import_module(n).__version__}" for n in ("transformers", "torch", "onnxruntime"))
    lines = [f"Measured on {datetime.date.today()} with {packages}: {len(right)} of {len(found)} models are right."]
    lines += [f"Of {len(alone)} more the forward alone is."] if alone else []
    for title, names in GROUPS.items():
        part = [row for row in right if row.name in names()]
        if part:
            lines += [
                "",
                f"| {title} | states | mixtures run as | experts reached | max \\|Δ\\|/std |",
                "|---" * 5 + "|",
            ]
            lines += ["| " + " | ".join(row.cells()) + " |" for row in part]
    for part, title in ((alone, ALONE), (others, "Not taken, in moec's own words:")):
        lines += ["", title, ""] if part else []
        for row in part:
            said = f": {row.said}" if row.said else ""
            lines += wrap(f"- {row.architecture} ({row.verdict}){said}", 118, subsequent_indent="  ")
    return "\n".join(lines)


def write(page: Path, text: str) -> None:
    """Put the table between its markers."""
    before, _, rest = page.read_text().partition(START)
    page.write_text(before + START + text + END + rest.partition(END)[2])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="names of models, which are compiled again")
    parser.add_argument("--row", help="one model in this process; prints JSON")
    parser.add_argument("--json", type=Path, help="a file of rows; those that it has are not measured again")
    parser.add_argument("--write", action="store_true", help="write docs/models.md")
    asked = parser.parse_args()
    if asked.row:
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as folder:
            print("\n" + json.dumps(asdict(measured(asked.row, Path(folder)))))
        return
    everything = [name for names in GROUPS.values() for name in names()]
    known = {}
    if asked.json and asked.json.exists():
        known = {r["name"]: Row.of(r) for r in json.loads(asked.json.read_text())}
    for row in rows([n for n in everything if n not in known] if asked.only is None else asked.only):
        known[row.name] = row
        print(" | ".join(row.cells()), flush=True)
        if asked.json:
            ordered = [asdict(known[n]) for n in everything if n in known]
            asked.json.write_text(json.dumps(ordered, indent=1))
    if asked.write:
        write(PAGE, table([known.get(n, Row(n, whole_zoo.architecture(n), "not run")) for n in everything]))


if __name__ == "__main__":
    main()
