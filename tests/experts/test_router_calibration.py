"""Fitting leaves both programs as they are, computes nothing behind the last choice, and counts choices as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moec.execution.choices import chosen
from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.experts.router_calibration import CalibratedBlock, FitSettings, calibrate
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.recognition.router_place import find_router
from moec.weights.lazy import scale
from tests.moe_module import EXPERTS, MoeModel, source_of

SETTINGS = FitSettings(0, 0.01, 10)


def samples(count: int, seed: int) -> list[dict[str, Tensor]]:
    return [
        {"input_ids": ids}
        for ids in torch.randint(0, 50, (count, 2, 20), generator=torch.Generator().manual_seed(seed))
    ]


@pytest.fixture(scope="module")
def programs() -> tuple[Program, Program]:
    """A program, and the same with a norm that hands its blocks something else."""
    captured = source_of(MoeModel()).capture()
    moved = captured.clone()
    for name in ("norms.0.weight", "norms.1.weight"):
        moved.weights[name] = scale(moved.weights[name], 1.3)
    return captured, moved


def blocks_of(captured: Program, moved: Program) -> list[CalibratedBlock]:
    return [
        CalibratedBlock(find_router(moved, a), find_router(captured, b))
        for a, b in zip(moe_nodes(moved), moe_nodes(captured), strict=True)
    ]


def choices(program: Program, given: list[dict[str, Tensor]]) -> list[Tensor]:
    found: list[Tensor] = []

    def look(calls: OperatorCalls) -> None:
        if calls.node in moe_nodes(program):
            found.append(
                torch.cat(
                    [chosen(calls.node, args, named) for args, named in zip(calls.inputs, calls.named, strict=True)]
                )
            )

    run_in_lockstep(program, given, look)
    return found


def test_what_is_reported_is_what_was_chosen(programs: tuple[Program, Program]) -> None:
    captured, moved = programs
    texts, blocks, held_out = [p.text() for p in programs], blocks_of(captured, moved), samples(2, 1)
    calibrate(moved, captured, blocks, samples(6, 0), held_out, SETTINGS)
    assert [p.text() for p in programs] == texts
    fitted = moved.clone()
    for block in blocks:
        assert block.fitted is not None
        block.place.write(fitted, block.fitted, "fitted")
    rows = zip(
        choices(captured, held_out),
        choices(moved, held_out),
        choices(fitted, held_out),
        (b.facts() for b in blocks),
        strict=True,
    )
    for wanted, before, after, facts in rows:
        assert facts["changed_before"] == pytest.approx(
            1 - (wanted & before).sum().item() / wanted.sum().item(), abs=1e-6
        )
        assert facts["changed_after"] == pytest.approx(
            1 - (wanted & after).sum().item() / wanted.sum().item(), abs=1e-6
        )
        assert facts["identical_after"] == pytest.approx((wanted == after).all(-1).double().mean().item())
        assert facts["loss_after"] < 0.1 * facts["loss_before"]  # a scaled input is made up for
        assert (facts["rows_fitted"], facts["rows_left"]) == (EXPERTS, 0)


def test_nothing_behind_the_last_choice_is_computed(programs: tuple[Program, Program]) -> None:
    captured, moved = (p.clone() for p in programs)

    def fail(_start: int, _stop: int) -> Tensor:
        raise AssertionError("the head was read")

    for program in (captured, moved):
        program.weights["head.weight"] = replace(program.weights["head.weight"], read=fail)
    calibrate(moved, captured, blocks_of(captured, moved), samples(2, 0), samples(1, 1), SETTINGS)
    with pytest.raises(AssertionError, match="the head was read"):
        run_in_lockstep(moved, samples(1, 0), lambda calls: None)


def test_no_block_is_no_work(programs: tuple[Program, Program]) -> None:
    reads, without = list[str](), [p.clone() for p in programs]
    for program in without:
        for name, weight in program.weights.items():
            program.weights[name] = replace(weight, read=lambda _start, _stop, name=name: reads.append(name))
    calibrate(without[1], without[0], [], samples(1, 0), samples(1, 1), SETTINGS)
    assert reads == []


def test_how_many_logits_count(programs: tuple[Program, Program]) -> None:
    place = blocks_of(*programs)[0].place
    wide = replace(place, weight=replace(place.weight, shape=(64, 16)))
    assert (
        FitSettings(0, 0.01, 1).best(place) == 8
        and FitSettings(0, 0.01, 1).best(wide) == 21
        and FitSettings(3, 0.01, 1).best(wide) == 3
    )
