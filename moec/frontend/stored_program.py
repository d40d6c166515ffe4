"""Programs on disk: a folder with the graph (`graph.pt2`, without data), the weights (safetensors, streamed) and what
else a Program is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from moec.errors import MoecError, reason_of
from moec.files.regular import read_text
from moec.frontend.edges import sizes_to_trace
from moec.frontend.export import export
from moec.frontend.exported_file import load_exported
from moec.frontend.from_exported import from_exported
from moec.program.conditions import Assumptions
from moec.program.original import Original
from moec.program.program import META, AppliedPass, Input, Program
from moec.weights.lazy import Weight, from_file
from moec.weights.shards import write_shards

GRAPH, WEIGHTS, FACTS = "graph.pt2", "model.safetensors", "program.json"


def retrace(program: Program, module: torch.nn.Module | None = None) -> torch.export.ExportedProgram:
    """The program (or its module on the meta device, edited) through torch.export once more, with its own dynamic
    dimensions."""
    sizes = sizes_to_trace(program)
    inputs = {i.name: torch.zeros(i.resolve(sizes), dtype=i.dtype, device=META) for i in program.inputs}
    dynamic = {i.name: [d if isinstance(d, str) else None for d in i.shape] for i in program.inputs}
    return export(module or program.module(META), inputs, dynamic)


def save_program(program: Program, folder: str | Path) -> None:
    """Write a program into a folder that may exist; weights are evaluated and written one block at a time.

    The graph is stored by `torch.export.save`. Raises M210 when the folder cannot be written.
    """
    path = Path(folder)
    first: dict[int, str] = {}
    stored: dict[str, Weight] = {}
    alias = {}
    for name, weight in program.weights.items():
        alias[name] = first.setdefault(id(weight), name)
        stored[alias[name]] = weight
    facts = {
        "inputs": [[i.name, str(i.dtype)[6:], list(i.shape)] for i in program.inputs],
        "outputs": list(program.outputs),
        "source": program.source,
        "history": [asdict(s) for s in program.history],
        "weights": alias,
        "assumptions": program.assumptions.to_plain(),
        "edges": list(program.edges),
        "original": program.original.to_plain(),
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
        torch.export.save(retrace(program), path / GRAPH)
        write_shards(path, stored, max_shard_bytes=2**63)
        (path / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise MoecError(
            "M210",
            f"the program cannot be written: {error.strerror or error}",
            str(path),
            "free space there, or choose another folder",
        ) from error


def load_program(folder: str | Path) -> Program:
    """Read what `save_program` wrote; the weights stay on disk until they are needed.

    Raises:
        MoecError: M209 for a graph that holds code, M204 for anything else that is no such program.
    """
    path = Path(folder)
    try:
        facts = json.loads(read_text(path / FACTS))
        exported = load_exported(path / GRAPH)
        files = {name: from_file(path / WEIGHTS, name) for name in set(facts["weights"].values())}
        assumed = Assumptions.of_plain(facts["assumptions"])
        inputs = tuple(Input(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in facts["inputs"])
        weights = {name: files[of] for name, of in facts["weights"].items()}
        dynamic = {i.name: [d if isinstance(d, str) else None for d in i.shape] for i in inputs}
        named = {i.name: torch.empty(0) for i in inputs}
        program = from_exported(exported, weights=weights, dynamic=dynamic, source=facts["source"], inputs=named)
        program.conditions, program.values, program.edges = assumed.sizes, assumed.values, tuple(facts["edges"])
        program.original = Original.of_plain(facts.get("original", {}))
        program.outputs, program.history = tuple(facts["outputs"]), [AppliedPass(**s) for s in facts["history"]]
        return program
    except MoecError:
        raise
    except Exception as error:
        raise MoecError(
            "M204",
            f"not a program of moec: {reason_of(error)}",
            str(path),
            "write it with moec.save_program",
        ) from error
