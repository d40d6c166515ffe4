"""A part of an engine runs alone, between two values that are known by their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from moec.execution.trace import trace
from moec.program.moe_call import MOE, MoeCall
from tests.backends.onnxruntime.session.test_intermediates import built
from tests.moe_module import MoeModel, source_of


def test_a_block_runs_alone_on_other_rows(tmp_path: Path) -> None:
    source = source_of(MoeModel())
    program, sample = source.capture(), source.sample({"batch": 2, "sequence": 7})
    ends: list[tuple[Tensor, Tensor, MoeCall]] = []

    def watch(node: fx.Node, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if node.target is MOE:
            call = MoeCall.evaluated(node.target, [a.load() if hasattr(a, "load") else a for a in args], kwargs)  # type: ignore[arg-type]
            ends.append((call.x, value, call))

    trace(program, sample, watch)
    ((x, y, call),) = ends
    engine = built(program, tmp_path / "engine")
    part = engine.part(sample, x, y, 1e-3)  # type: ignore[attr-defined]
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for rows in (x, other):
        want = MOE(rows, *call.args[1:], **call.kwargs)
        assert torch.allclose(part(rows), want, atol=1e-3 * float(want.std()))
    assert not torch.allclose(part(other), y, atol=0.1)


def test_numbers_that_are_not_there_have_no_part(tmp_path: Path) -> None:
    source = source_of(MoeModel())
    program, sample = source.capture(), source.sample({"batch": 2, "sequence": 7})
    engine, there = built(program, tmp_path / "engine"), source.reference()(**sample)["logits"]
    absent = torch.randn(2, 7, 16)
    assert engine.part(sample, absent, there, 1e-3) is None  # type: ignore[attr-defined]
    assert engine.part(sample, absent, absent, 1e-3) is None  # type: ignore[attr-defined]
