"""Weights as they lie in memory: transposed, and packed, every byte of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moec.dialect import Activation
from moec.kernels import launch
from moec.kernels.packed import ExpertCodes
from moec.kernels.starting import recording
from moec.kernels.tiles import Tile
from tests.kernels.accuracy import MARGIN, problem, ratio
from tests.kernels.conftest import Interpret
from tests.kernels.test_packed import packed

SMALL = Tile(16, 32, 32)


def decoded_as(name: str, given: Tensor, dtype: torch.dtype) -> Tensor:
    """`probes.decode`; runs where `interpret` says."""
    from tests.kernels.device.probes import decode

    return decode(name, given, dtype)


def test_every_fp8_number(interpret: Interpret) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    want = every.view(torch.float8_e4m3fn).float()
    got = interpret(decoded_as, "fp8", every, torch.float32)
    assert torch.equal(got.nan_to_num(999), want.nan_to_num(999)) and int(got.isnan().sum()) == 2
    assert not torch.equal(got.nan_to_num(999), every.view(torch.float8_e4m3fnuz).float().nan_to_num(999))


def test_every_integer(interpret: Interpret) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(interpret(decoded_as, "integer", every, torch.float32), every.float() - 100)


def side_by_side(weight: Tensor | ExpertCodes) -> Tensor | ExpertCodes:
    """The same weights with rows side by side in memory, as where a model keeps `[E, in, out]`."""
    if isinstance(weight, Tensor):
        return weight.mT.contiguous().mT
    return replace(weight, values=weight.values.view(torch.uint8).mT.contiguous().mT.view(weight.values.dtype))


@pytest.mark.parametrize(
    ("dtype", "hidden", "inner", "sort"),
    [(torch.float32, 64, 32, False), (torch.bfloat16, 37, 21, False), (torch.bfloat16, 40, 24, True)],
    ids=["even", "odd", "sorted"],
)
def test_transposed(interpret: Interpret, dtype: torch.dtype, hidden: int, inner: int, sort: bool) -> None:
    given, rule = problem(dtype=dtype, biases=True, hidden=hidden, inner=inner), Activation()
    turned = replace(given, w_in=side_by_side(given.w_in), w_out=side_by_side(given.w_out))
    got = interpret(launch.experts, *turned.tensors(), rule=rule, tile=SMALL, sort=sort)
    swapped = replace(given, w_in=given.w_in.flip(1))  # gates for ups
    assert ratio(got, given, rule) < MARGIN < ratio(got, swapped, rule)


@pytest.mark.parametrize(("kind", "zeros"), [("int4", True), ("int8", False), ("fp8", False)])
def test_transposed_and_packed(interpret: Interpret, kind: str, zeros: bool) -> None:
    given, rule = problem(experts=5, tokens=17, hidden=32, inner=24, top_k=1), Activation("gelu")
    weight = packed(48, 32, kind, 16, zeros, torch.float32)
    got = interpret(
        launch.experts,
        *replace(given, w_in=side_by_side(weight)).tensors(),
        rule=rule,
        tile=SMALL,
    )
    shifted = replace(weight, scale=weight.scale.roll(1, 1))
    right, wrong = (replace(given, w_in=w) for w in (weight, shifted))
    assert ratio(got, right, rule) < MARGIN < ratio(got, wrong, rule)


def test_only_rows_side_by_side_are_read_as_such() -> None:
    """Strides of both kinds that are not 1 are read one by one."""
    found = {}
    for name, step in {"straight": (64, 1), "transposed": (1, 48), "neither": (128, 2)}.items():
        w_in = torch.empty_strided((6, 48, 64), (48 * 64 * 2, *step), device="meta")
        w_out = torch.empty(6, 64, 24, device="meta")
        with recording(90) as seen:
            ids = torch.empty(4, 2, dtype=torch.int64, device="meta")
            launch.experts(torch.empty(4, 64, device="meta"), ids, ids.float(), w_in, w_out, rule=Activation())
        found[name] = [x.arguments["TURNED"] for x in seen.launches if "rows" in x.kernel.__name__]
    assert found == {"straight": [False, False], "transposed": [True, False], "neither": [False, False]}
