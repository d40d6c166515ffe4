"""Assertions on data: torch's own hold always, the model's are refused, since no engine could check them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.frontend.export import capture

DYNAMIC = {"x": ("batch", None)}


class Picks(nn.Module):
    """Rows that are positive, with whatever is asserted of how many there are."""

    def __init__(self, asserted: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.asserted = asserted

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.where(x[:, 0] > 0)[0]
        self.asserted(x, rows)
        return torch.zeros_like(x).index_add(0, rows, x[rows])


def nothing(x: Tensor, rows: Tensor) -> None:
    """Torch asserts by itself that a count is not negative."""


def few(x: Tensor, rows: Tensor) -> None:
    """At most 4 rows."""
    torch._check(rows.shape[0] <= 4)


def small(x: Tensor, rows: Tensor) -> None:
    """An element read as a number."""
    torch._check(x[0, 0].long().item() < 9)


def assertion(x: Tensor, rows: Tensor) -> None:
    """On a tensor."""
    torch._assert_async((x < 9).all(), "x is below 9")


@pytest.mark.parametrize("dynamic", [DYNAMIC, None], ids=["dynamic", "fixed"])
def test_what_operators_always_give_is_no_condition(dynamic: dict[str, tuple[str | None, ...]] | None) -> None:
    program = capture(Picks(nothing), {"x": torch.randn(6, 4)}, dynamic)
    x = torch.randn(6, 4)
    assert program.conditions == () and torch.equal(program.run(x=x)["output"], Picks(nothing)(x))


@pytest.mark.parametrize(("asserted", "named"), [(few, "4"), (small, "9"), (assertion, "x is below 9")])
def test_what_the_model_asserts_is_refused_by_its_name(asserted: Callable[[Tensor, Tensor], None], named: str) -> None:
    with pytest.raises(MoecError, match="asserts something of its data") as caught:
        capture(Picks(asserted), {"x": torch.randn(6, 4)}, DYNAMIC)
    assert caught.value.code == "M207" and named in caught.value.what
