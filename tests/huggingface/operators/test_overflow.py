"""An overflow of half precision is cut off as the model cuts it, whether there is one or not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.execution.streaming import StreamingEngine
from moec.frontend.export import capture
from moec.huggingface.operators.overflow import overflow_without_branch
from moec.program.program import Program


class Bart(nn.Module):
    """Two layers that cut as BART's do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = self.cut(layer(x))
        return x

    def cut(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float16 and not torch.isfinite(x).all():
            most = torch.finfo(x.dtype).max - 1000
            x = torch.clamp(x, min=-most, max=most)
        return x


class LongT5(Bart):
    """Asks the other way round."""

    def cut(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float16 and torch.isinf(x).any():
            most = torch.finfo(x.dtype).max - 1000
            x = torch.clamp(x, min=-most, max=most)
        return x


class Otherwise(Bart):
    """Does something else."""

    def cut(self, x: Tensor) -> Tensor:
        return x if torch.isfinite(x).all() else x * 0.5


def made(kind: type[Bart], scale: float = 2.0) -> Bart:
    model = kind()
    for parameter in model.parameters():
        parameter.data = torch.eye(4) * scale
    return model.half()


def program(model: Bart) -> Program:
    with overflow_without_branch(model):
        return capture(model, {"x": torch.ones(3, 4).half()}, {"x": ("rows", None)})


@pytest.mark.parametrize("kind", [Bart, LongT5])
@pytest.mark.parametrize("numbers", [[1.0, -2.0, 3.0, 4.0], [16200.0, 1.0, 2.0, 4.0], [40000.0, 32400.0, 2.0, -4e4]])
def test_it_is_what_the_model_says(kind: type[Bart], numbers: list[float]) -> None:
    model, x = made(kind), torch.tensor([numbers, [1.0, 2.0, 3.0, 4.0]]).half()
    with torch.no_grad():
        want = model(x)
    got = next(iter(StreamingEngine(program(model))(x=x).values()))
    assert torch.equal(got, want) and bool(got.isfinite().all())


def test_numbers_just_below_the_largest_stay_unless_others_overflow() -> None:
    """A cut without the question would be wrong here."""
    engine, x = StreamingEngine(program(made(Bart, 1.0))), torch.full((1, 4), 65000.0).half()
    assert torch.equal(next(iter(engine(x=x).values())), x)


def test_another_branch_is_refused() -> None:
    with pytest.raises(MoecError, match="something else") as error:
        program(made(Otherwise))
    assert error.value.code == "M207"
    assert torch.is_grad_enabled(), "the end of no_grad is let through behind the error"
