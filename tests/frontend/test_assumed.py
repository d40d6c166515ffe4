"""What torch.export states of sizes becomes conditions: every kind of it, and nothing that is not the model's."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.frontend.export import capture
from moec.frontend.from_exported import from_exported
from moec.program.program import Program

Forward = Callable[[Tensor], Tensor]


class Model(nn.Module):
    """A function of one tensor `[batch, length, 8]`."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.function, self.scale = function, nn.Parameter(torch.tensor(2.0))
        self.conv = nn.Conv1d(8, 8, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x.transpose(1, 2)) if self.function is convolved else x) * self.scale


def short(x: Tensor) -> Tensor:
    """A branch on one size."""
    return x.cumsum(1) if x.shape[1] > 72 else x


def tokens(x: Tensor) -> Tensor:
    """A branch on a product of sizes."""
    return x.cumsum(1) if x.shape[0] * x.shape[1] > 100 else x


def capacity(x: Tensor) -> Tensor:
    """A number of Python's that is made of sizes; it stays one where the bytecode is read."""
    return x.clamp(max=int(1.25 * x.shape[1] / 4) / 10)


def halves(x: Tensor) -> Tensor:
    """Divisibility, which torch would ask for as another dimension."""
    return x.reshape(x.shape[0], 2, -1, 8).sum(1)


def convolved(x: Tensor) -> Tensor:
    """A minimum: a kernel of 3, and a size of 1 after it that torch assumes not to be."""
    return x[:, :, 1:] - x[:, :, :-1]


def single(x: Tensor) -> Tensor:
    """What torch assumes of a size without a word of the model."""
    return x.transpose(0, 1).reshape(-1, 8) if x.shape[1] != 1 else x.reshape(-1, 8)


def captured(function: Forward, batch: int = 3, length: int = 14) -> tuple[nn.Module, Program]:
    model = Model(function).eval()
    return model, capture(model, {"x": torch.randn(batch, length, 8)}, {"x": ("batch", "length", None)})


def smaller(x: Tensor) -> Tensor:
    """What is true of every size, and torch does not know."""
    torch._check(torch.sym_min(8 * x.shape[1], 16 * x.shape[1]) == 8 * x.shape[1])
    return x.cumsum(1)


def test_what_is_true_of_every_size_is_no_condition() -> None:
    assert captured(smaller)[1].conditions == () and captured(short)[1].conditions


@pytest.mark.parametrize(("function", "held", "refused"), [
    (short, [(1, 1), (2, 72)], [(2, 73), (1, 500)]),
    (tokens, [(1, 100), (100, 1), (10, 10)], [(1, 101), (2, 51), (101, 1)]),
    (capacity, [(1, 13), (9, 15), (1, 12), (1, 16), (4, 200)], []),
    (halves, [(1, 2), (3, 40)], [(1, 1), (3, 41)]),
    (convolved, [(1, 3), (1, 4), (2, 6), (7, 90)], [(1, 2), (2, 1)]),
    (single, [(1, 2), (2, 1), (1, 1), (5, 30)], []),
])  # fmt: skip
def test_right_where_the_conditions_hold_and_refused_elsewhere(
    function: Forward, held: list[tuple[int, int]], refused: list[tuple[int, int]]
) -> None:
    model, program = captured(function)
    engine = EagerEngine(program)
    for batch, length in held:
        x = torch.randn(batch, length, 8)
        assert engine.holds({"batch": batch, "length": length})
        assert torch.allclose(engine(x=x)["output"], model(x), atol=1e-6), (batch, length)
    for batch, length in refused:
        assert not engine.holds({"batch": batch, "length": length})
        with pytest.raises(MoecError) as caught:
            engine(x=torch.randn(batch, length, 8))
        assert caught.value.code == "M213", (batch, length)


def test_the_texts() -> None:
    assert [str(c) for c in captured(short)[1].conditions] == ["length <= 72"]
    assert [str(c) for c in captured(short, length=80)[1].conditions] == ["length >= 73"]
    assert captured(single)[1].conditions == () == captured(lambda x: x + 1)[1].conditions


def test_a_wrong_program_is_one_without_them() -> None:
    """The mutant: what moec did before."""
    model, program = captured(short)
    program.conditions = ()
    x = torch.randn(2, 80, 8)
    assert not torch.allclose(EagerEngine(program)(x=x)["output"], model(x), atol=1e-3)


class TwoNames(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_dimensions_of_other_names_that_must_be_equal() -> None:
    samples = {"x": torch.randn(5, 8), "y": torch.randn(5, 8)}
    program = capture(TwoNames(), samples, {"x": ("rows", None), "y": ("lines", None)})
    assert [sorted(c.names) for c in program.conditions] == [["lines", "rows"]]
    assert not program.conditions[0].holds({"rows": 4, "lines": 3}) and program.conditions[0].holds(
        {"rows": 4, "lines": 4}
    )


@pytest.mark.parametrize(("function", "held", "refused"), [(short, 72, 73), (halves, 40, 41)])
def test_a_file_keeps_them(function: Forward, held: int, refused: int) -> None:
    dims = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim.AUTO}
    exported = torch.export.export(
        Model(function).eval(), (torch.randn(3, 14, 8),), dynamic_shapes=(dims,), strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )  # fmt: skip
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    engine = EagerEngine(from_exported(torch.export.load(file)))
    (name,) = (i.name for i in engine.inputs)
    engine(**{name: torch.randn(2, held, 8)})
    with pytest.raises(MoecError) as caught:
        engine(**{name: torch.randn(2, refused, 8)})
    assert caught.value.code == "M213"


def test_clones_keep_them_and_the_text_shows_them() -> None:
    program = captured(short)[1]
    assert program.clone().conditions == program.conditions and "length <= 72" in program.clone().text()


class Pairs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.reshape(x.shape[0], 2, -1).sum((1, 2)).sum() + y.sum()


def test_sizes_of_a_file_that_are_computed_from_another() -> None:
    half = torch.export.Dim("half")
    dims = {"x": {0: torch.export.Dim("rows"), 1: 2 * half}, "y": {0: 3 * half + 1}}
    exported = torch.export.export(Pairs(), (torch.randn(3, 10), torch.randn(16)), dynamic_shapes=dims)
    program = from_exported(exported)
    engine = EagerEngine(program)
    for width in (4, 12):
        x, y = torch.randn(2, width), torch.randn(3 * (width // 2) + 1)
        assert torch.allclose(engine(x=x, y=y)["output"], Pairs()(x, y), atol=1e-5)
    for width, length in ((11, 16), (10, 15), (12, 16)):
        with pytest.raises(MoecError) as caught:
            engine(x=torch.randn(2, width), y=torch.randn(length))
        assert caught.value.code == "M213"
    assert all(d.isidentifier() for i in program.inputs for d in i.shape if isinstance(d, str))
