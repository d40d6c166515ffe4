"""An engine shows what it computes inside, and a wrong lowering is bisected with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moec.backends.onnxruntime.backend import Onnxruntime
from moec.execution.engine import Engine
from moec.execution.trace import trace
from moec.program.program import Program
from moec.proof.bisection import Bounds, bisect
from moec.proof.compare import Tolerance
from moec.targets.target import Target
from moec.weights.lazy import from_tensor
from tests.moe_module import MoeModel, source_of

TARGET, FP32 = Target.parse("onnxruntime"), Tolerance.of(torch.float32)


def built(program: Program, folder: Path) -> Engine:
    folder.mkdir()
    Onnxruntime().build(program, TARGET, folder)
    return Onnxruntime().load(folder, TARGET)


def test_values_inside_are_the_programs(tmp_path: Path) -> None:
    source = source_of(MoeModel())
    program = source.capture()
    sample = source.sample({"batch": 2, "sequence": 7})
    values = built(program, tmp_path / "engine").intermediates(sample)  # type: ignore[attr-defined]
    norms: list[torch.Tensor] = []
    trace(program, sample, lambda node, value, args, kwargs: norms.append(value) if "layer_norm" in node.name else None)
    assert len(norms) == 2
    for norm in norms:
        assert any(
            v.numel() == norm.numel() and torch.allclose(v.flatten(), norm.flatten(), atol=1e-4)
            for v in values.values()
        )
        assert not any(
            v.numel() == norm.numel() and torch.allclose(v.flatten(), norm.flatten() + 0.01, atol=1e-4)
            for v in values.values()
        )


@pytest.mark.parametrize(("block", "expert"), [(0, 1), (1, 3)])
def test_a_wrong_lowering_is_bisected_to_block_and_expert(tmp_path: Path, block: int, expert: int) -> None:
    source = source_of(MoeModel())
    program = source.capture()
    samples = [source.sample({"batch": 2, "sequence": 19})]
    right = bisect(
        source.reference(), [("capture", program)], samples, Bounds(FP32), built(program, tmp_path / "right")
    )
    assert right.stage == ""
    lowered = program.clone()
    value = lowered.weights[f"blocks.{block}.w_out"].load().clone()
    value[expert] *= 1.2
    lowered.weights[f"blocks.{block}.w_out"] = from_tensor(value, "spoiled")
    wrong = bisect(
        source.reference(), [("capture", program)], samples, Bounds(FP32), built(lowered, tmp_path / "wrong")
    )
    assert (wrong.stage, wrong.layer, wrong.experts) == ("the backend's lowering", f"blocks.{block}", (expert,))
