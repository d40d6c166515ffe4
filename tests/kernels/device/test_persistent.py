"""Persistent kernels compute what kernels with a program a piece compute, bit for bit; and they fit where those do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moec.dialect import Activation
from moec.kernels import launch
from moec.kernels.ahead import SHARED_LIMIT_BYTES
from moec.kernels.packed import ExpertCodes
from moec.kernels.starting import recording
from moec.kernels.tiles import Tile
from tests.kernels.accuracy import MARGIN, problem, ratio
from tests.kernels.conftest import Interpret
from tests.kernels.device.test_grouped_gemm import SMS, built, demand_a_good_main_loop

SMALL, PERSISTENT = Tile(16, 32, 32), Tile(16, 32, 32, resident=1)
IDS = {
    "one token": torch.tensor([[3, 1]]),
    "empty experts": torch.tensor([[1, 4]] * 20),
    "one expert takes all": torch.full((33, 1), 5),
    "nobody's": torch.full((18, 2), -1),
    "a tile and one": torch.tensor([[0, 2]] * 17),
}


@pytest.mark.parametrize("name", IDS)
def test_the_same_bits(interpret: Interpret, name: str) -> None:
    """Two programs in turn for all pieces, in any layout of work; wild ids are in `tests/kernels/test_bounds.py`."""
    ids, rule = IDS[name], Activation("gelu", limit=1.0)
    given = replace(problem(rule, tokens=len(ids), top_k=ids.shape[1], biases=True, dtype=torch.bfloat16), ids=ids)
    plain, persistent = (
        interpret(launch.experts, *given.tensors(), rule=rule, tile=tile) for tile in (SMALL, PERSISTENT)
    )
    assert torch.equal(plain, persistent)
    if name != "nobody's":
        known = (ids >= 0) & (ids < 6)
        meant = replace(given, ids=ids.where(known, 0), weights=given.weights * known)
        assert (
            ratio(persistent, meant, rule) < MARGIN < ratio(persistent, replace(meant, ids=(meant.ids + 1) % 6), rule)
        )
    else:
        assert (persistent == 0).all()


@pytest.mark.parametrize("sort", [False, True], ids=["few", "many"])
def test_packed_and_weighted_before(interpret: Interpret, sort: bool) -> None:
    given = problem(tokens=9, hidden=64, inner=32)
    scale = torch.rand(6, 64, 2, generator=torch.Generator().manual_seed(0)) * 0.02
    given = replace(given, w_in=ExpertCodes(torch.randint(0, 256, (6, 64, 32), dtype=torch.uint8), scale))
    rule = {"rule": Activation(), "score_before": True, "sort": sort}
    plain, persistent = (interpret(launch.experts, *given.tensors(), tile=tile, **rule) for tile in (SMALL, PERSISTENT))
    assert torch.equal(plain, persistent) and ratio(persistent, given, Activation(), before=True) < MARGIN < ratio(
        persistent, given, Activation()
    )


def test_no_tokens(interpret: Interpret) -> None:
    assert interpret(launch.experts, *problem(tokens=0).tensors(), rule=Activation(), tile=PERSISTENT).shape == (0, 40)


def test_as_many_programs_as_are_resident() -> None:
    """On request, whatever the table says; never more programs than pieces."""
    pieces, persistent, few = (grids(tokens, resident) for tokens, resident in ((512, 0), (512, 3), (1, 64)))
    assert pieces[0] > 6 and persistent == [6, 6] and 0 < max(few) <= 8 * 32


def grids(tokens: int, resident: int) -> list[int]:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16, device="meta")

    with recording(90) as found:
        ids = torch.empty(tokens, 8, dtype=torch.int64, device="meta")
        launch.experts(
            empty(tokens, 2048),
            ids,
            empty(tokens, 8),
            empty(128, 1536, 2048),
            empty(128, 2048, 768),
            rule=Activation(),
            resident=resident,
        )
    rows = [x for x in found.launches if "rows" in x.kernel.__name__]
    assert all(("persistent" in x.kernel.__name__) == (resident > 0) for x in rows)
    return [x.grid[0] for x in rows]


@pytest.mark.parametrize(
    ("case", "sm"), [*(("many tokens", sm) for sm in SMS), ("many tokens, int4", 90), ("many tokens, int4", 100)]
)
def test_every_gpu(compiler: Interpret, case: str, sm: int) -> None:
    for kernel in compiler(built, case, sm, None, "rows", resident=1):
        assert "persistent" in kernel.name and f".target sm_{sm}" in kernel.ptx
        assert kernel.scratch_bytes == 0 and kernel.spilled_bytes == 0 and kernel.registers <= 255, kernel.name
        assert kernel.registers * 32 * kernel.warps <= 65536, kernel.name
        assert kernel.shared_bytes <= SHARED_LIMIT_BYTES[sm] and "\ttrap;" not in kernel.ptx, kernel.name
        demand_a_good_main_loop(kernel, case, sm)
