"""What `moec plan` says of servers, beside what servers did: published runs of vLLM, SGLang and TensorRT-LLM.

usage: PYTHONPATH=. python benchmarks/plan_servers.py [--json] [--save]

Needs the extra `moec[plan]`, whose package holds the runs (systems/silicon_sample.csv: models, devices, prompt, answer,
texts at once, milliseconds a token); without it the reason is printed. Nothing is timed here, and nothing was fitted to
these runs but the choice of the tables' types. Asked is the time from one token to the next of so many texts at once:
a step in the middle of the answers, and the prompts that take the device's time in between, texts / answer of a prompt
a step. Left out are runs with experts or attention spread in other ways than by tensor parallelism on 1 to 8 devices of
one node, with separate devices for prompts, and models whose config moec cannot count.

A row is a model on a device with a number of them, as served by one framework; `value` is the share of its runs within
a quarter, `inside` that inside of the stated interval.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from plan_tables import PACKAGES
from reporting import add_output, environment, put_out, show

from moec.errors import MoecError
from moec.planning.devices import devices
from moec.planning.formats import FORMATS
from moec.planning.measured import PACKAGE, SYSTEMS, why_none
from moec.planning.pace import time_on
from moec.planning.shape import Shape
from moec.planning.work import Work

DEVICES = {system: name for name, system in SYSTEMS.items()}
NAMED = {  # runs -> the config that the package has for the model
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
    "Qwen/Qwen3-235B-A22B-FP8": "Qwen/Qwen3-235B-A22B",
}


def package() -> Path:
    """Where the package's files lie."""
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def shape(model: str, known: dict[str, Shape | None]) -> Shape | None:
    """The model's shape from the config that the package has; None where there is none, or it is not understood."""
    from moec.huggingface.shape import shape_of

    if model not in known:
        file = package() / "model_configs" / f"{NAMED.get(model, model).replace('/', '--')}_config.json"
        try:
            known[model] = shape_of(str(file)) if file.is_file() else None
        except MoecError:
            known[model] = None
    return known[model]


def format_of(run: dict[str, str]) -> str | None:
    """The format of the weights; gpt-oss comes in MXFP4."""
    four = "mxfp4" if "gpt-oss" in run["model_path"] else "nvfp4"
    return {"": "bf16", "fp8": "fp8", "fp4": four, "int4": "int4"}.get(run["precision"])


def runs() -> Iterator[tuple[str, str, float, float, float]]:
    """Case, framework, and milliseconds a token: at least, at most, measured."""
    known: dict[str, Shape | None] = {}
    with (package() / "systems" / "silicon_sample.csv").open(encoding="utf-8") as file:
        for run in csv.DictReader(file):
            format, device = format_of(run), devices().get(DEVICES.get(run["system"], ""))
            plain = run["mode"] == "agg" and run["attention_dp_size"] == "1" and run["moe_ep_size"] in ("", "1")
            if not plain or format is None or device is None or run["tp_size"] not in ("1", "2", "4", "8"):
                continue
            model = shape(run["model_path"], known)
            if model is None or model.unknown:
                continue
            ranks, texts, prompt, answer = (int(run[n]) for n in ("tp_size", "batch_size", "isl", "osl"))
            step = time_on(Work(model, FORMATS[format], texts, prompt + answer // 2), device, ranks)
            first = time_on(Work(model, FORMATS[format], 1, prompt, prompt=True), device, ranks)
            share = texts / answer
            low, high = step.low + share * first.low, step.high + share * first.high
            case = f"{run['model_path'].split('/')[1]}, {format}, {ranks} {device.name}"
            yield case, run["backend"], 1e3 * low, 1e3 * high, float(run["silicon_tpot_ms"])


def rows() -> list[dict[str, Any]]:
    """All together, by framework, and each case."""
    every = list(runs())
    groups: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for case, who, *times in every:
        for name in (("all", "all"), ("all", who), (case, who)):
            groups.setdefault(name, []).append((times[0], times[1], times[2]))
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != "all", item[0][1] != "all", item[0]))
    return [row(case, who, np.array(found)) for (case, who), found in ordered]


def row(case: str, who: str, found: np.ndarray[Any, Any]) -> dict[str, Any]:
    """One row: the middle of an interval is the geometric mean of its ends."""
    low, high, measured = found.T
    wrong = np.abs(np.sqrt(low * high) / measured - 1)
    return {
        "case": case, "who": who, "unit": "% within 25 %", "value": round(100 * float(np.mean(wrong <= 0.25)), 1),
        "inside": round(100 * float(np.mean((low <= measured) & (measured <= high))), 1),
        "median_error": round(float(np.median(wrong)), 3), "runs": len(found),
        "asked_over_measured": round(float(np.median(np.sqrt(low * high) / measured)), 2),
    }  # fmt: skip


def text(every: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| case | who | runs | % within 25 % | % inside | median error | asked / measured |", "|" + "---|" * 7]
    lines += [
        f"| {r['case']} | {r['who']} | {r['runs']} | {r['value']} | {r['inside']} | {r['median_error']:.0%} |"
        f" {r['asked_over_measured']} |"
        for r in every
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_output(parser, "plan_servers")
    options = parser.parse_args()
    why = why_none(devices()["h200"])
    if why:
        show({**environment(PACKAGES), "skipped": why, "rows": []}, f"skipped: {why}", options)
        return
    every = rows()
    put_out("plan_servers", {**environment(PACKAGES), "rows": every}, text(every), options)


if __name__ == "__main__":
    main()
