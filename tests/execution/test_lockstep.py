"""A run in lockstep computes what running each input does, reads weights once, and goes on with what was put in a
value's place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from moec.compiler.open import open_source
from moec.execution.lockstep import OperatorCalls, joined, run_in_lockstep
from moec.execution.streaming import StreamingEngine
from moec.program.decoder_signature import text_inputs
from moec.program.moe_call import moe_nodes
from moec.program.program import Program

aten = torch.ops.aten


def program_of(folder: Path) -> tuple[Program, list[dict[str, Tensor]]]:
    program = open_source(str(folder), cache=False).capture()
    ids = torch.randint(0, 90, (3, 2, 11), generator=torch.Generator().manual_seed(0))
    return program, [text_inputs(program.inputs, rows) for rows in ids]


def look(_: OperatorCalls) -> None:
    """Changes nothing."""


def test_it_computes_what_single_runs_compute(mixtral: Path) -> None:
    program, samples = program_of(mixtral)
    engine = StreamingEngine(program)
    for outputs, sample in zip(run_in_lockstep(program, samples, look), samples, strict=True):
        assert torch.equal(outputs[0], engine.run(sample)["logits"])


def test_weights_are_read_once(mixtral: Path) -> None:
    program, samples = program_of(mixtral)
    name = next(str(n.args[1].target) for n in program.nodes(aten.linear.default))
    reads: list[tuple[int, int]] = []
    whole = program.weights[name]
    program.weights[name] = replace(whole, read=lambda a, b: reads.append((a, b)) or whole.read(a, b))
    run_in_lockstep(program, samples, look)
    assert reads == [(0, whole.shape[0])]


def test_what_stands_in_a_place_is_computed_with(mixtral: Path) -> None:
    program, samples = program_of(mixtral)
    plain = run_in_lockstep(program, samples, look)
    experts = moe_nodes(program)[0]

    def silence(calls: OperatorCalls) -> None:
        if calls.node is experts:
            calls.replace_each(2, [torch.zeros_like(w) for w in calls.values(2)])

    changed = run_in_lockstep(program, samples, silence)
    assert all(not torch.equal(a[0], b[0]) for a, b in zip(plain, changed, strict=True))
    again = run_in_lockstep(program, samples, look)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain, again, strict=True))  # the program itself is as it was


def test_it_ends_where_it_should(mixtral: Path) -> None:
    program, samples = program_of(mixtral)
    seen: list[str] = []
    first = moe_nodes(program)[0]
    assert run_in_lockstep(program, samples, lambda calls: seen.append(calls.node.name), until=first) == []
    assert seen[-1] == first.name


def test_rows_of_all_inputs_stand_below_each_other_in_order() -> None:
    rows = torch.arange(24.0).view(8, 3)
    assert torch.equal(joined([rows[:6].view(2, 3, 3), rows[6:]]), rows)


def test_every_so_many_rows_are_those_of_all_of_them() -> None:
    parts = [torch.randn(2, 5, 3), torch.randn(1, 3), torch.randn(7, 3), torch.randn(1, 1, 3)]
    for every in (1, 2, 3, 4, 30):
        assert torch.equal(joined(parts, every), joined(parts)[::every])
