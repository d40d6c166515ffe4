"""An engine runs where the model does, or says where it does not."""

from __future__ import annotations

import pytest

from moec.errors import MoecError
from tests.moe_module import MoeModel, source_of
from tests.proof.bounded import Bounded, Picky
from tests.proving import sizes, verify


def test_an_engine_is_proven_at_the_sizes_that_it_was_made_for() -> None:
    source = source_of(MoeModel())
    program = source.capture()
    found = verify(source, Bounded(program), program)
    run = sizes(found)
    assert found.ok and not run.refused and {"batch": 2, "sequence": 7} in run.sizes
    assert all(s["batch"] <= 4 and s["sequence"] <= 10 for s in run.sizes) and found.coverage.samples < len(run.sizes)
    assert {"batch": 4, "sequence": 2} in run.sizes  # as near to a batch of 9 as it goes
    with pytest.raises((RuntimeError, MoecError)):  # must fail: its refusals are failures
        verify(source, Bounded(program, says_so=False), program).require()


def test_an_engine_that_cannot_run_one_token_says_so_and_is_proven_elsewhere() -> None:
    source = source_of(MoeModel())
    program = source.capture()
    found = verify(source, Picky(program, 1), program)
    assert found.ok and [r.sizes for r in sizes(found).refused] == [{"batch": 1, "sequence": 1}]
    assert sizes(found).refused[0].reason == "RuntimeError: Invalid dimension"


def test_an_engine_that_cannot_run_another_length_is_refused() -> None:
    source = source_of(MoeModel())
    program = source.capture()
    found = verify(source, Picky(program, 37), program)
    assert not found.ok and found.comparison.ok
    with pytest.raises(MoecError, match="sequence=37") as error:
        found.require()
    assert error.value.code == "M101"
