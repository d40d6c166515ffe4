"""Which ids an input may hold follows from the tables that it is looked up in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.frontend.export import capture
from moec.program.conditions import Values


class Looks(nn.Module):
    """A table of 20 rows, and one of 12, read as `how` says."""

    def __init__(self, how: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.how, self.table, self.small = how, nn.Embedding(20, 4), nn.Embedding(12, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.how(self, ids)


HOWS: list[tuple[Callable[[Any, Tensor], Tensor], tuple[int, int] | None]] = [
    (lambda m, ids: m.table(ids), (0, 19)),
    (lambda m, ids: m.table(ids) + m.small(ids), (0, 11)),
    (lambda m, ids: m.table(ids + 2), (-2, 17)),
    (lambda m, ids: m.table(ids - 1), (1, 20)),
    (lambda m, ids: m.table(ids.unsqueeze(0).reshape(-1).to(torch.int32)), (0, 19)),
    (lambda m, ids: m.table.weight[ids], (-20, 19)),
    (lambda m, ids: torch.index_select(m.table.weight, 0, ids.reshape(-1)), (0, 19)),
    (lambda m, ids: m.table(ids.clamp(0, 19)), None),
    (lambda m, ids: m.table(torch.where(ids < 0, 0, ids)), None),
    (lambda m, ids: m.table(ids[:, :1]), None),
    (lambda m, ids: ids.float() * m.table.weight[0, 0], None),
]


@pytest.mark.parametrize(("how", "limits"), HOWS, ids=range(len(HOWS)))
def test_the_engine_refuses_what_eager_refuses(
    how: Callable[[Any, Tensor], Tensor], limits: tuple[int, int] | None
) -> None:
    model = Looks(how).eval()
    program = capture(model, {"ids": torch.ones(3, 5, dtype=torch.int64)}, {"ids": ("batch", "length")})
    assert program.values == (() if limits is None else (Values("ids", *limits),)) == program.clone().values
    engine = EagerEngine(program)
    for value in range(-25, 26):
        ids = torch.tensor([[3, value, 3]])
        if limits is None:
            continue
        taken = limits[0] <= value <= limits[1]
        try:
            want = model(ids)
        except IndexError:
            assert not taken, "eager refuses it"
            with pytest.raises(MoecError) as caught:
                engine(ids=ids)
            assert caught.value.code == "M214"
        else:
            assert taken and torch.equal(engine(ids=ids)["output"], want)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.types = nn.Embedding(20, 4), nn.Embedding(2, 4)

    def forward(self, ids: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.words(ids) + self.types(token_type_ids)


def test_every_input_has_its_own() -> None:
    samples = {n: torch.ones(3, 5, dtype=torch.int64) for n in ("ids", "token_type_ids")}
    program = capture(Two(), samples, dict.fromkeys(samples, ("batch", "length")))
    assert set(program.values) == {Values("ids", 0, 19), Values("token_type_ids", 0, 1)}


class Positions(nn.Module):
    """A table of 24 positions, read from 0 or 2 on."""

    def __init__(self, first: int, start: bool) -> None:
        super().__init__()
        self.places, self.first, self.start = nn.Embedding(24, 4), first, start

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        places = torch.arange(1, length + 1) - 1 if self.start else torch.arange(length)
        return x + self.places(places.unsqueeze(0) + self.first)


@pytest.mark.parametrize(("first", "start", "longest"), [(0, False, 24), (2, False, 22), (2, True, 22)])
def test_a_table_of_positions_bounds_the_length(first: int, start: bool, longest: int) -> None:
    model = Positions(first, start).eval()
    program = capture(model, {"x": torch.randn(3, 5, 4)}, {"x": ("batch", "length", None)})
    assert [str(c) for c in program.conditions] == [f"length <= {longest}"]
    x = torch.randn(2, longest, 4)
    assert torch.allclose(EagerEngine(program)(x=x)["output"], model(x))
    with pytest.raises(IndexError):
        model(torch.randn(1, longest + 1, 4))
