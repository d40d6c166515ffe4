"""What ONNX Runtime's CUDA provider would do with moec's engines: on which provider nodes run, what a prompt and a step
launch and copy. No GPU is needed, and no time is measured: see `tests/cuda_stand_in`.

usage: python benchmarks/cuda_graph.py [--only mixtral qwen3_moe/fp16 …] [--sm 90] [--json] [--save before|after]

Eight models of the tests with random weights, two layers, at sizes that CUDA's kernels take, each in fp32, fp16, and
integers of 4 and 8 bits beside fp16 (`int4-fp32`, beside fp32, where it is asked for). A prompt has 16 tokens, a step
is the third after it. What a layer adds is the difference of four layers and two, halved. The last model has 128
experts, 8 of them taken: two layers and 46 times what one adds stand for Qwen3-30B-A3B's 48.

`--save before` writes the figures beside those of `after`, and the other way round, into `results/cuda_graph.json`;
`cuda_graph.md` shows both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from reporting import RESULTS as FOLDER
from reporting import Row, add_output, environment, keep, show

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.cuda_stand_in.engines import FORMS, MODELS, captured, lower  # noqa: E402
from tests.cuda_stand_in.observation import Observation, Part  # noqa: E402
from tests.cuda_stand_in.observe import Job, observe_all  # noqa: E402

RESULTS = FOLDER / "cuda_graph.json"
DEPTHS = 2, 4
DEEP = "fp16", "int4"  # the forms of which a layer's share is found; the others' is much the same
DEFAULT = "fp32", "fp16", "int4", "int8"
BIG, BIG_LAYERS = "qwen3_moe 128 experts", 48  # as Qwen3-30B-A3B has them
CASES = {name: (name, {}) for name in MODELS} | {BIG: ("qwen3_moe", {"num_experts": 128, "num_experts_per_tok": 8})}
Cell = dict[str, Any]


def engines(case: str, forms: list[str], folder: Path) -> Iterator[tuple[str, int, Path, str]]:
    """Form, layers, folder and target of a model's engines; where building fails the target says why."""
    name, changes = CASES[case]
    for layers in DEPTHS:
        wanted = [form for form in forms if layers == DEPTHS[0] or form in DEEP]
        for dtype in {FORMS[form].dtype for form in wanted}:
            program = captured(name, dtype, layers, **changes)
            for form in (f for f in wanted if FORMS[f].dtype == dtype):
                place = folder / f"{form}-{layers}"
                try:
                    yield form, layers, place, lower(program, form, place)
                except Exception as error:  # it is the finding of this cell
                    yield form, layers, place, f"not built: {error}"


def measure(case: str, forms: list[str], sm: int) -> dict[str, Cell]:
    """Form -> figures of one model."""
    with tempfile.TemporaryDirectory() as folder:
        built = list(engines(case, forms, Path(folder)))
        able = [engine for engine in built if not engine[3].startswith("not built")]
        seen = observe_all([Job(str(place), target) for _, _, place, target in able], sm)
    found = {(form, layers): seen for (form, layers, _, _), seen in zip(able, seen, strict=True)}
    failed = {form: text for form, _, _, text in built if text.startswith("not built")}
    return {
        form: {"error": failed[form]} if form in failed else cell(found[form, DEPTHS[0]], found.get((form, DEPTHS[1])))
        for form in forms
    }


def cell(shallow: Observation, deep: Observation | None) -> Cell:
    """Figures of one engine, and where there is a deeper one of what a layer adds."""
    error = shallow.error or (deep.error if deep else "")
    if error:
        return {"error": error, "refused": shallow.refused, **placement(shallow)}
    parts = {"prompt": shallow.prompt} | ({"step": shallow.step} if shallow.writes else {})
    found = {name: counts(part) for name, part in parts.items()}
    a_layer = {name: added(found[name], counts(getattr(deep, name))) for name in parts} if deep else {}
    return {
        **placement(shallow),
        "refused": shallow.refused,
        "held_bytes": shallow.parts["load"].held_bytes,
        "first_launches": shallow.parts["first"].launches,
        "a_layer": a_layer,
        "kernels": {name: dict(part.names().most_common()) for name, part in parts.items()},
        "attention": {name: dict(part.attention) for name, part in parts.items()},
        "products": {name: dict(math(part)) for name, part in parts.items()},
        **found,
    }


def added(shallow: Cell, deep: Cell) -> Cell:
    """What one layer adds."""
    return {key: (deep[key] - value) / (DEPTHS[1] - DEPTHS[0]) for key, value in shallow.items()}


def placement(seen: Observation) -> Cell:
    return {"on_cpu": dict(seen.on_cpu), "on_cuda": seen.on_cuda.total(), "memcpy_nodes": seen.memcpy_nodes}


def counts(part: Part) -> dict[str, float]:
    """Launches, copies and bytes of one part."""
    found: dict[str, float] = {"launches": part.launches, "waits": len(part.waits)}
    for source, target in (("host", "device"), ("device", "device"), ("device", "host")):
        copies = part.copied(source, target)
        found |= {f"{source}_to_{target}": len(copies), f"{source}_to_{target}_bytes": sum(copies)}
    return found


def math(part: Part) -> Counter[str]:
    """In which numbers cuBLAS multiplies, and how often."""
    return Counter("TF32" if product.tf32 else product.dtype for product in part.products)


def estimate(figures: Cell, layers: int) -> Cell:
    """A step of a deeper model, from what a layer adds."""
    return {key: figures["step"][key] + (layers - DEPTHS[0]) * more for key, more in figures["a_layer"]["step"].items()}


COLUMNS = {
    "CPU nodes": lambda c: sum(c["on_cpu"].values()),
    "Memcpy": lambda c: c["memcpy_nodes"],
    "prompt": lambda c: c["prompt"]["launches"],
    "step": lambda c: c["step"]["launches"],
    "a layer": lambda c: f"{a_layer(c)['launches']:g}",
    "to device": lambda c: c.get("step", c["prompt"])["host_to_device"],
    "on device": lambda c: c.get("step", c["prompt"])["device_to_device"],
    "a layer's copies": lambda c: f"{copies_a_layer(c):g}",
    "TF32": lambda c: sum(p.get("TF32", 0) for p in c["products"].values()),
    "attention": lambda c: ", ".join(dict.fromkeys(k for part in c["attention"].values() for k in part)) or "none",
}


def a_layer(figures: Cell) -> Cell:
    """What a layer adds to a step, or to a call of what takes none."""
    return figures["a_layer"]["step" if "step" in figures else "prompt"]


def copies_a_layer(figures: Cell) -> float:
    return sum(n for key, n in a_layer(figures).items() if "_to_" in key and not key.endswith("bytes"))


def shown(column: str, figures: Cell | None) -> str:
    """One figure; `–` where there is none."""
    try:
        return str(COLUMNS[column](figures)) if figures else ""
    except KeyError:
        return "–"


def table(results: dict[str, Any]) -> str:
    """Figures before and after, `80 → 40` where both are there and differ."""
    sides = [results.get(side, {}).get("cells", {}) for side in ("before", "after")]
    lines = [f"| model | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    notes = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        pairs = [[shown(column, side.get(key)) for side in sides] for column in COLUMNS]
        lines.append(f"| {key} | " + " | ".join(" → ".join(dict.fromkeys(filter(None, p))) for p in pairs) + " |")
        for when, side in zip(("before", "after"), sides, strict=True):
            figures = side.get(key, {})
            notes += [f"- {key} {when}: {figures['error'][:300]}"] if figures.get("error") else []
            notes += [f"- {key} {when}: refused {'; '.join(figures['refused'][:3])}"] if figures.get("refused") else []
    return "\n".join([*lines, "", *estimates(sides), "", *notes])


def rows_of(results: dict[str, Any]) -> list[Row]:
    """The table's figures, a row each."""
    cells = [(side, key, f) for side in results for key, f in results[side]["cells"].items()]
    return [
        {"case": f"{key}, {side}", "who": "moec", "value": found, "unit": column}
        for side, key, figures in cells
        for column in COLUMNS
        if (found := shown(column, figures)) not in ("", "–")
    ]


def estimates(sides: list[dict[str, Cell]]) -> list[str]:
    found = []
    for when, side in zip(("before", "after"), sides, strict=True):
        for form in FORMS:
            figures = side.get(f"{BIG} {form}", {})
            if figures.get("a_layer"):
                whole = estimate(figures, BIG_LAYERS)
                found.append(
                    f"- {BIG_LAYERS} layers of {BIG}, {form}, a step {when}: {whole['launches']:g} launches, "
                    f"{whole['host_to_device']:g} copies to the device, {whole['device_to_device']:g} on it, "
                    f"{whole['device_to_host']:g} from it"
                )
    return found


def chosen(only: list[str]) -> dict[str, list[str]]:
    """Model -> forms that `--only` asks for."""
    asked = [text.partition("/") for text in only or CASES]
    return {
        case: [f for f in FORMS if any(form == f or (not form and f in DEFAULT) for n, _, form in asked if n == case)]
        for case in dict.fromkeys(name for name, _, _ in asked)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="models, or model/form")
    parser.add_argument("--sm", type=int, default=90, help="the compute capability that the stand-in tells")
    add_output(parser)
    parser.add_argument("--save", choices=("before", "after"))
    asked = parser.parse_args()
    if odd := [t for t in asked.only if t.partition("/")[0] not in CASES or not any(chosen([t]).values())]:
        parser.error(f"{odd[0]}: MODEL or MODEL/FORM, of {', '.join(CASES)} and {', '.join(FORMS)}")
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if asked.save and RESULTS.exists() else {}
    side = asked.save or "after"
    cells = results.setdefault(side, {}).setdefault("cells", {})
    for case, forms in chosen(asked.only).items():
        print(f"{case}: {', '.join(forms)}", file=sys.stderr)
        cells |= {f"{case} {form}": figures for form, figures in measure(case, forms, asked.sm).items()}
        results[side] |= {"environment": environment(), "sm": asked.sm, "cells": cells}
        if asked.save:
            keep(RESULTS.stem, results, table(results))
    show({**environment(), "rows": rows_of(results), **results}, table(results), asked)


if __name__ == "__main__":
    main()
