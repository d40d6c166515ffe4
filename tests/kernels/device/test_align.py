"""The order that the pairs are put in, and the tiles that it is cut into."""

from __future__ import annotations

import pytest
import torch

from moec.kernels import launch
from tests.kernels.conftest import Interpret


def random_ids(pairs: int, experts: int) -> torch.Tensor:
    return torch.randint(0, experts, (pairs, 1), generator=torch.Generator().manual_seed(pairs))


@pytest.mark.parametrize("rows", [4, 16])
@pytest.mark.parametrize(
    "case", ["random", "one expert", "last expert", "empty ends", "out of range", "more than a block"]
)
def test_every_pair_is_in_one_tile_of_its_expert(interpret: Interpret, case: str, rows: int) -> None:
    experts = 7
    ids = {
        "random": random_ids(50, 7),
        "one expert": torch.full((33, 1), 2),
        "last expert": torch.full((16, 1), 6),
        "empty ends": random_ids(40, 3) + 2,
        "out of range": random_ids(60, 11) - 2,
        "more than a block": random_ids(2100, 7),
    }[case]
    flat = ids.flatten()
    order = interpret(launch.align, ids, experts, rows)
    valid = (flat >= 0) & (flat < experts)
    counts = flat[valid].bincount(minlength=experts)
    assert order.offsets.tolist() == [0, *counts.cumsum(0).tolist()]
    assert order.pairs[: int(valid.sum())].tolist() == sorted(
        valid.nonzero().flatten().tolist(), key=lambda p: int(flat[p])
    )  # stable

    seen = []
    for tile, expert in enumerate(order.experts.tolist()):
        if expert >= 0:
            begin = order.offsets[expert].item() + (tile - order.offsets[expert].item() // rows - expert) * rows
            seen += range(begin, min(begin + rows, order.offsets[expert + 1].item()))
    assert seen == list(range(int(valid.sum())))
    assert sum(e >= 0 for e in order.experts.tolist()) == int((-(-counts // rows)).sum())  # no padding beyond a tile
