"""An engine is proven at other sizes than the capture's, and a wrong one is refused."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.program.program import Program
from moec.proof.compare import Tolerance
from moec.proof.verification import verify
from moec.weights.lazy import from_tensor
from tests.moe_module import MoeModel, source_of

FP32 = Tolerance.of(torch.float32)


class Picky(EagerEngine):
    """Refuses what a specialised export would refuse: some length."""

    def __init__(self, program: Program, length: int) -> None:
        super().__init__(program)
        self.name, self._length = "picky", length

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if inputs["input_ids"].shape[1] == self._length:
            raise RuntimeError("\nInvalid dimension\nmore lines")
        return super().run(inputs)


class Bounded(Picky):
    """Made for a few tokens and texts, and says so."""

    def __init__(self, program: Program, says_so: bool = True) -> None:
        super().__init__(program, 0)
        self._says_so = says_so

    def holds(self, sizes: Mapping[str, int]) -> bool:
        return not self._says_so or (sizes["batch"] <= 4 and sizes["sequence"] <= 10)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        batch, length = inputs["input_ids"].shape
        if batch > 4 or length > 10:
            raise RuntimeError("outside of the profile")
        return super().run(inputs)


def test_an_engine_is_proven_at_the_sizes_that_it_was_made_for() -> None:
    source = source_of(MoeModel())
    program = source.capture()
    found = verify(source, Bounded(program), program, FP32)
    assert found.ok and not found.refused and {"batch": 2, "sequence": 7} in found.sizes
    assert all(s["batch"] <= 4 and s["sequence"] <= 10 for s in found.sizes) and found.coverage.samples == len(
        found.sizes
    )
    with pytest.raises((RuntimeError, MoecError)):  # the twin: its refusals are failures
        verify(source, Bounded(program, says_so=False), program, FP32).require()


def test_the_captured_program_is_proven() -> None:
    source = source_of(MoeModel())
    program = source.capture()
    found = verify(source, EagerEngine(program), program, FP32)
    assert found.ok and found.comparison.outputs[0].deviation < 1e-5 and not found.refused
    assert {"batch": 1, "sequence": 1} in found.sizes and all(s["sequence"] != 11 for s in found.sizes)
    assert len(found.sizes) == found.comparison.samples == found.coverage.samples
    found.require()


@pytest.mark.parametrize("expert", [0, 3])
def test_one_slightly_wrong_expert_is_found(expert: int) -> None:
    source = source_of(MoeModel())
    program = source.capture()
    wrong = program.clone()
    spoiled = program.weights["blocks.1.w_out"].load().clone()
    spoiled[expert] *= 1.05
    wrong.weights["blocks.1.w_out"] = from_tensor(spoiled, "spoiled")
    found = verify(source, EagerEngine(wrong), program, FP32)
    assert not found.ok
    with pytest.raises(MoecError) as error:
        found.require()
    assert error.value.code == "M101"


def test_an_engine_that_cannot_run_one_token_says_so_and_is_proven_elsewhere() -> None:
    source = source_of(MoeModel())
    program = source.capture()
    found = verify(source, Picky(program, 1), program, FP32)
    assert found.ok and [r.sizes for r in found.refused] == [{"batch": 1, "sequence": 1}]
    assert found.refused[0].reason == "RuntimeError: Invalid dimension"


def test_an_engine_that_cannot_run_another_length_is_refused() -> None:
    source = source_of(MoeModel())
    program = source.capture()
    found = verify(source, Picky(program, 37), program, FP32)
    assert not found.ok and found.comparison.ok
    with pytest.raises(MoecError, match="sequence=37") as error:
        found.require()
    assert error.value.code == "M101"


def test_nan_in_the_untouched_model_ends_the_proof() -> None:
    model = MoeModel()
    source = source_of(model)
    program = source.capture()
    with torch.no_grad():
        model.head.bias[3] = float("nan")
    with pytest.raises(MoecError) as error:
        verify(source, EagerEngine(program), program, FP32)
    assert error.value.code == "M105"
