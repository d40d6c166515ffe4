"""What a capture assumes, its engine asks of every call; one that forgot it is no proof."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.frontend.module_source import ModuleSource
from moec.program.conditions import Assumptions, Condition, Values
from moec.proof.checks.assumed import Assumed
from tests.proving import sizes, verify


class Switches(nn.Module):
    """Another result above 20 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 8)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        return x.cumsum(1) if input_ids.shape[1] > 20 else x


def source() -> ModuleSource:
    ids = torch.randint(0, 32, (3, 11))
    return ModuleSource(Switches().eval(), {"input_ids": ids}, {"input_ids": ("batch", "sequence")})


def test_the_engine_is_proven_up_to_the_bound() -> None:
    model = source()
    program = model.capture()
    proof = verify(model, EagerEngine(program), program)
    found = proof.find(Assumed)
    assert proof.ok and found is not None and found.sizes == ("sequence <= 20",)
    assert found.values == (("input_ids", 0, 31),) and found.forgotten == ()
    assert found.assumptions == Assumptions((Condition("sequence <= 20"),), (Values("input_ids", 0, 31),))
    assert {"batch": 2, "sequence": 20} in sizes(proof).sizes, "and at the bound itself"


@pytest.mark.parametrize("forgotten", ["conditions", "values"])
def test_an_engine_that_does_not_ask_fails(forgotten: str) -> None:
    model = source()
    program = model.capture()
    engine = EagerEngine(program)
    setattr(engine, forgotten, ())
    found = verify(model, engine, program).find(Assumed)
    assert found is not None and not found.ok
    with pytest.raises(MoecError, match="was not made for") as caught:
        found.require()
    assert caught.value.code == "M101"


def test_a_model_that_assumes_nothing_is_not_asked() -> None:
    plain = ModuleSource(nn.Linear(4, 4).eval(), {"input": torch.randn(3, 4)}, {"input": ("batch", None)})
    program = plain.capture()
    assert verify(plain, EagerEngine(program), program).find(Assumed) is None
