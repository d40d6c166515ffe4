"""In half precision, tokens near the edge between two experts prove nothing; all others are held to the tolerance."""

from __future__ import annotations

import pytest
import torch

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.proof.compare import Tolerance
from moec.proof.decided_tokens import NOISE, look
from moec.weights.lazy import from_tensor
from tests.moe_module import EXPERTS, source_of
from tests.proof.test_decided_tokens import tied
from tests.proving import decided, verify

HALF, FP16 = torch.float16, Tolerance.of(torch.float16)


class Flipping(EagerEngine):
    """The program in half precision, whose rounding falls the other way in tokens that are undecided."""

    def __init__(self, program, watched, shift: float = 0.0) -> None:  # type: ignore[no-untyped-def]
        super().__init__(program)
        self._program, self._shift = watched, shift

    def run(self, inputs):  # type: ignore[no-untyped-def]
        outputs = super().run(inputs)
        k, _ = look(self._program, inputs, NOISE[HALF], causal=True)
        return {n: torch.where(k.tokens[..., None], v, v + 1) + self._shift for n, v in outputs.items()}


def test_flips_are_no_difference_and_differences_are() -> None:
    source = source_of(tied())
    program = source.capture(HALF)
    found = verify(source, Flipping(program, program), program, precision=HALF)
    found.require()
    assert (
        found.ok
        and decided(found) is not None
        and 0 < decided(found).compared < decided(found).tokens
        and "tokens; the others" in str(found)
    )
    assert not verify(source, Flipping(program, program), program, FP16.deviation).ok, (
        "where a budget decides, everything is compared"
    )
    assert not verify(source, Flipping(program, program, 1.0), program, precision=HALF).ok


@pytest.mark.parametrize("expert", range(EXPERTS))
def test_one_expert_a_few_percent_off_is_found_on_what_is_left(expert: int) -> None:
    source = source_of(tied())
    program = source.capture(HALF)
    wrong = program.clone()
    spoiled = program.weights["blocks.1.w_out"].load().clone()
    spoiled[expert] *= 1.04
    wrong.weights["blocks.1.w_out"] = from_tensor(spoiled, "spoiled")
    found = verify(source, Flipping(wrong, program), program, precision=HALF)
    assert not found.comparison.ok and decided(found) is not None and not decided(found).problem
    with pytest.raises(MoecError, match="differs"):
        found.require()


def test_a_model_whose_every_token_is_undecided_is_refused() -> None:
    source = source_of(tied(every=True))
    program = source.capture(HALF)
    found = verify(source, Flipping(program, program), program, precision=HALF)
    assert not found.ok and not found.comparison.ok  # of no element nothing is said
    assert decided(found) is not None and decided(found).compared == 0
    with pytest.raises(MoecError, match="can't tell") as error:
        found.require()
    assert error.value.code == "M108"
    equal = verify(source, EagerEngine(program), program, 1e9, HALF)
    assert equal.ok and decided(equal) is None, "what is equal everywhere needs no choice among tokens"
