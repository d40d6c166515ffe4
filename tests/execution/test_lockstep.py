"""A walk computes what running each input does, reads weights once, and computes on with what was put in a value's
place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from moec.compiler.open import open_source
from moec.execution.lockstep import Stop, walk
from moec.execution.streaming import StreamingEngine
from moec.program.decoder_signature import text_inputs
from moec.program.moe_call import moe_nodes
from moec.program.program import Program

aten = torch.ops.aten


def program_of(folder: Path) -> tuple[Program, list[dict[str, Tensor]]]:
    program = open_source(str(folder), cache=False).capture()
    ids = torch.randint(0, 90, (3, 2, 11), generator=torch.Generator().manual_seed(0))
    return program, [text_inputs(program.inputs, rows) for rows in ids]


def look(_: Stop) -> None:
    """Changes nothing."""


def test_it_computes_what_single_runs_compute(mixtral: Path) -> None:
    program, samples = program_of(mixtral)
    engine = StreamingEngine(program)
    for outputs, sample in zip(walk(program, samples, look), samples, strict=True):
        assert torch.equal(outputs[0], engine.run(sample)["logits"])


def test_weights_are_read_once(mixtral: Path) -> None:
    program, samples = program_of(mixtral)
    name = next(str(n.args[1].target) for n in program.nodes(aten.linear.default))
    reads: list[tuple[int, int]] = []
    whole = program.weights[name]
    program.weights[name] = replace(whole, read=lambda a, b: reads.append((a, b)) or whole.read(a, b))
    walk(program, samples, look)
    assert reads == [(0, whole.shape[0])]


def test_what_stands_in_a_place_is_computed_with(mixtral: Path) -> None:
    program, samples = program_of(mixtral)
    plain = walk(program, samples, look)
    experts = moe_nodes(program)[0]

    def silence(stop: Stop) -> None:
        if stop.node is experts:
            stop.replace_each(2, [torch.zeros_like(w) for w in stop.values(2)])

    changed = walk(program, samples, silence)
    assert all(not torch.equal(a[0], b[0]) for a, b in zip(plain, changed, strict=True))
    again = walk(program, samples, look)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain, again, strict=True))  # the program itself is as it was


def test_it_ends_where_it_is_told_to(mixtral: Path) -> None:
    program, samples = program_of(mixtral)
    seen: list[str] = []
    first = moe_nodes(program)[0]
    assert walk(program, samples, lambda stop: seen.append(stop.node.name), until=first) == []
    assert seen[-1] == first.name
