"""Parts of several widths and the way back to one stack."""

from __future__ import annotations

from dataclasses import replace

import torch

from moec.weights.lazy import concat, from_tensor, merged
from moec.weights.widths import ExpertWidths, taken


def test_parts_and_the_order_that_undoes_them() -> None:
    mixture = ExpertWidths((4, 2, 8, 2, 4))
    assert mixture.parts == ((2, (1, 3)), (4, (0, 4)), (8, (2,)))
    assert mixture.order == (2, 0, 4, 1, 3)
    stored = [e for _, experts in mixture.parts for e in experts]
    assert [stored[at] for at in mixture.order] == list(range(5))
    assert str(mixture) == "2 bit for 2 and 4 bit for 2 and 8 bit for 1"


def test_rows_in_another_order_are_read_one_by_one() -> None:
    value = torch.randn(6, 3, 2)
    reads: list[tuple[int, int]] = []
    whole = from_tensor(value, "w")
    watched = replace(whole, read=lambda a, b: reads.append((a, b)) or whole.read(a, b))  # type: ignore[func-returns-value]
    some = taken(watched, [4, 0, 5])
    assert some.shape == (3, 3, 2) and torch.equal(some.load(), value[[4, 0, 5]])
    reads.clear()
    assert torch.equal(some.read(1, 3), value[[0, 5]]) and reads == [(0, 1), (5, 6)]
    assert some.read(2, 2).shape == (0, 3, 2)
    assert taken(whole, [0, 4]).origin != some.origin


def test_there_and_back() -> None:
    value = torch.randn(5, 4, 2)
    mixture = ExpertWidths((4, 2, 8, 2, 4))
    parts = [taken(from_tensor(value, "w"), experts) for _, experts in mixture.parts]
    again = taken(concat(parts, 0), mixture.order)
    assert torch.equal(again.load(), value)
    assert not torch.equal(concat(parts, 0).load(), value)
    assert torch.equal(merged(again).read(3, 9), value.flatten(0, 1)[3:9])
