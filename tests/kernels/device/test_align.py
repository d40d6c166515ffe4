"""The order that the pairs are put in, and the tiles that it is cut into."""

from __future__ import annotations

import re

import pytest
import torch

from moec.kernels import launch
from moec.kernels.ahead import compile_ahead
from moec.kernels.starting import recording
from tests.kernels.conftest import Interpret


def random_ids(pairs: int, experts: int) -> torch.Tensor:
    return torch.randint(0, experts, (pairs, 1), generator=torch.Generator().manual_seed(pairs))


@pytest.mark.parametrize("rows", [4, 16])
@pytest.mark.parametrize(
    "case", ["random", "one expert", "last expert", "empty ends", "out of range", "more than a block", "a block"]
)
def test_every_pair_is_in_one_tile_of_its_expert(interpret: Interpret, case: str, rows: int) -> None:
    experts = 7
    ids = {
        "random": random_ids(50, 7),
        "one expert": torch.full((33, 1), 2),
        "last expert": torch.full((16, 1), 6),
        "empty ends": random_ids(40, 3) + 2,
        "out of range": random_ids(60, 11) - 2,
        "more than a block": random_ids(2100, 10) - 1,
        "a block": random_ids(1024, 7),
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


@pytest.mark.parametrize(("tokens", "kernels"), [(127, ["align"]), (128, ["count", "align"])])
def test_ids_are_read_once_by_each_program(tokens: int, kernels: list[str]) -> None:
    """Up to 1024 pairs in one load; beyond, a histogram comes first, and what follows is counted from that."""
    with recording(90) as found:
        launch.align(torch.empty(tokens, 8, dtype=torch.int64, device="meta"), 128, 16)
    assert [x.kernel.__name__.removesuffix("_kernel") for x in found.launches] == kernels
    assert found.launches[-1].grid == (128,) and found.launches[-1].arguments["ALONE"] == (len(kernels) == 1)


def loads_of_ids(tokens: int) -> tuple[int, int]:
    """Loads of ids in the PTX of the last kernel, waited for and copied ahead; runs where `compiler` says."""
    with recording(90) as found:
        launch.align(torch.empty(tokens, 8, dtype=torch.int64, device="meta"), 128, 16)
    ptx = compile_ahead(found.launches[-1], 90).ptx
    return len(re.findall(r"ld\.global\S*b64", ptx)), len(re.findall(r"cp\.async\.c\w\.", ptx))


def test_ids_come_ahead_of_their_use(compiler: Interpret) -> None:
    """A block of 1024 is 8 loads a thread: once, or in a pipeline."""
    assert compiler(loads_of_ids, 100) == (8, 0)
    waited, ahead = compiler(loads_of_ids, 4096)
    assert waited == 0 and ahead >= 16
