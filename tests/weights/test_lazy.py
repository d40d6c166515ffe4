"""Every weight expression against torch: as a whole, by blocks, and by any rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from moec.weights import lazy
from moec.weights.lazy import Weight
from moec.weights.weight import PackedWeight

A, B, C = torch.randn(7, 5), torch.randn(7, 5), torch.randn(4, 6, 3)
WA, WB, WC = (lazy.from_tensor(t, name) for t, name in ((A, "a"), (B, "b"), (C, "c")))

EXPRESSIONS: dict[str, tuple[Callable[[], Weight], Tensor]] = {
    "tensor": (lambda: WA, A),
    "stack": (lambda: lazy.stack([WA, WB, WA]), torch.stack([A, B, A])),
    "stack of copies": (lambda: lazy.stack([WA] * 4), torch.stack([A] * 4)),
    "concat rows": (lambda: lazy.concat([WA, WB, WA], 0), torch.cat([A, B, A])),
    "concat columns": (lambda: lazy.concat([WA, WB], 1), torch.cat([A, B], 1)),
    "concat inner": (lambda: lazy.concat([WC, WC], 1), torch.cat([C, C], 1)),
    "select": (lambda: lazy.select(WC, 2), C[2]),
    "select of a stack": (lambda: lazy.select(lazy.stack([WA, WB]), 1), B),
    "rows": (lambda: lazy.rows(WA, 2, 6), A[2:6]),
    "rows of rows": (lambda: lazy.rows(lazy.rows(WA, 2, 6), 1, 3), A[3:5]),
    "take": (lambda: lazy.take(WA, (1, 2, 5)), A[[1, 2, 5]]),
    "take of an atomic weight": (lambda: lazy.take(lazy.whole("copy", lambda t: t, WA), (5, 0)), A[[5, 0]]),
    "columns": (lambda: lazy.columns(WC, 1, 3), C[..., 1:3]),
    "merged": (lambda: lazy.merged(WC), C.flatten(0, 1)),
    "merged, a vector": (lambda: lazy.merged(WA), A.flatten()),
    "zeros": (lambda: lazy.zeros((5, 2), torch.float16), torch.zeros(5, 2, dtype=torch.float16)),
    "transpose": (lambda: lazy.transpose(WA, 0, 1), A.T),
    "transpose inner": (lambda: lazy.transpose(WC, 1, 2), C.transpose(1, 2)),
    "transpose outer": (lambda: lazy.transpose(WC, 2, 0), C.transpose(0, 2)),
    "transpose, negative": (lambda: lazy.transpose(WC, -1, -2), C.transpose(1, 2)),
    "cast": (lambda: lazy.cast(WA, torch.bfloat16), A.bfloat16()),
    "scale": (lambda: lazy.scale(WA, 0.25), A * 0.25),
    "rowwise": (lambda: lazy.rowwise("sum", torch.add, WA, WB), A + B),
    "whole": (lambda: lazy.whole("flip", lambda t: t.flip(0), WA), A.flip(0)),
    "whole to a scalar": (lambda: lazy.whole("max", lambda t: t.max(), WA), A.max()),
    "nested": (
        lambda: lazy.cast(
            lazy.stack([lazy.concat([lazy.transpose(WA, 0, 1), lazy.transpose(WB, 0, 1)], 0)] * 2), torch.float16
        ),
        torch.stack([torch.cat([A.T, B.T])] * 2).half(),
    ),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expression(name: str) -> None:
    make, want = EXPRESSIONS[name]
    weight = make()
    assert (weight.shape, weight.dtype, weight.size_bytes) == (tuple(want.shape), want.dtype, want.nbytes)
    assert weight.meta().shape == want.shape and weight.meta().device.type == "meta"
    assert torch.equal(weight.load(), want)


@pytest.mark.parametrize("name", [n for n, (_, want) in EXPRESSIONS.items() if want.dim()])
def test_expression_by_rows(name: str) -> None:
    make, want = EXPRESSIONS[name]
    weight = make()
    for block_bytes in (1, 2 * want[0].nbytes, 2**20):
        assert torch.equal(torch.cat(list(weight.blocks(block_bytes))), want)
    for start in range(len(want)):
        for stop in range(start + 1, len(want) + 1):
            assert torch.equal(weight.read(start, stop), want[start:stop])


def test_nothing_is_read_before_it_is_asked_for_and_then_only_that() -> None:
    read: list[tuple[int, int]] = []

    def record(start: int, stop: int) -> Tensor:
        read.append((start, stop))
        return A[start:stop]

    weight = Weight((7, 5), A.dtype, "a", record)
    made = lazy.concat([lazy.cast(weight, torch.float16), lazy.cast(WB, torch.float16)], 0)
    lazy.stack([made, made])
    assert read == []
    made.read(5, 9)
    assert read == [(5, 7)]


def test_blocks_are_as_large_as_asked_and_an_atomic_weight_is_one() -> None:
    assert [len(b) for b in WA.blocks(3 * A[0].nbytes)] == [3, 3, 1]
    assert [len(b) for b in lazy.whole("flip", lambda t: t.flip(0), WA).blocks(1)] == [7]


def test_what_would_change_nothing_is_the_weight_itself() -> None:
    assert lazy.cast(WA, A.dtype) is WA
    assert lazy.scale(WA, 1.0) is WA


def test_origins_tell_expressions_apart() -> None:
    origins = [make().origin for make, _ in EXPRESSIONS.values()]
    assert len(set(origins)) == len(origins) - 1  # two ways of asking for one transposition
    assert lazy.stack([WA] * 4).origin == "stack(a x 4)"


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn]
)
def test_a_file(dtype: torch.dtype, tmp_path: Path) -> None:
    values = {"w": (torch.randn(9, 4) * 3).to(dtype), "scalar": torch.tensor(3).to(dtype)}
    save_file(values, tmp_path / "model.safetensors")
    for name, want in values.items():
        weight = lazy.from_file(tmp_path / "model.safetensors", name)
        assert (weight.shape, weight.dtype, weight.origin) == (tuple(want.shape), dtype, f"model.safetensors:{name}")
        assert (
            torch.equal(weight.load().view(torch.uint8), want.view(torch.uint8))
            if dtype.itemsize == 1 and dtype.is_floating_point
            else torch.equal(weight.load(), want)
        )
    assert [len(b) for b in lazy.from_file(tmp_path / "model.safetensors", "w").blocks(4 * dtype.itemsize * 4)] == [
        4,
        4,
        1,
    ]


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_file({"w": torch.full((2, 2), value)}, tmp_path / "new.safetensors")
        (tmp_path / "new.safetensors").replace(tmp_path / "model.safetensors")
        assert lazy.from_file(tmp_path / "model.safetensors", "w").load()[0, 0] == value


# ---------------------------------------------------------------------- codes
def coded(seed: int, bits: int = 4, rows_: int = 6, zeros: bool = True) -> Weight:
    generator = torch.Generator().manual_seed(seed)
    zero = torch.randint(0, 2**bits, (rows_, 2), generator=generator).to(torch.uint8) if zeros else None
    parts = [
        torch.randint(0, 256, (rows_, 4 * bits), generator=generator).to(torch.uint8),
        torch.randn(rows_, 2, generator=generator),
        zero,
    ]
    packed, scale, zero_ = (None if p is None else lazy.from_tensor(p, f"{seed}.{i}") for i, p in enumerate(parts))
    assert packed is not None and scale is not None
    return lazy.decoded(PackedWeight(packed, scale, zero_, bits))


def test_one_of_a_stack_is_read_alone_and_traced_to_the_stack() -> None:
    read: list[int] = []

    def counted(n: int) -> Weight:
        value = torch.full((3, 4), float(n))
        return Weight((3, 4), torch.float32, f"w{n}", lambda a, b: (read.append(n), value[a:b])[1])

    whole = lazy.stack([counted(n) for n in range(5)])
    one = lazy.select(whole, 2)
    assert torch.equal(one.read(1, 3), torch.full((2, 4), 2.0)) and read == [2]
    assert any(part is whole for part in one.expression()), "a proof traces what lowering cut out of a program's weight"


def test_movements_of_rows_keep_codes() -> None:
    a, b = coded(1), coded(2)
    made = [
        lazy.stack([a, b]),
        lazy.concat([a, b], 0),
        lazy.concat([lazy.stack([a, b]), lazy.stack([b, a])], 1),
        lazy.select(lazy.stack([a, b]), 1),
        lazy.rows(a, 2, 5),
        lazy.cast(a, torch.float64),
        lazy.rearranged("flip", lambda t: t.flip(0), coded(1)),
        lazy.stack([coded(1, zeros=False)]),
    ]
    for weight in made:
        assert weight.coded is not None and weight.coded.packed.dtype == torch.uint8
        assert (
            torch.equal(lazy.decoded(weight.coded).load(), weight.load()) and weight.dtype == weight.coded.scale.dtype
        )


def test_one_of_a_stack_has_the_codes_of_the_stack() -> None:
    whole = lazy.stack([coded(1), coded(2)])
    one = lazy.select(whole, 1)
    assert whole.coded is not None and one.coded is not None
    for part, of in zip(one.coded.parts(), whole.coded.parts(), strict=True):
        assert any(w is of for w in part.expression()), "which a program may hold as a weight of its own"
    assert one.origin != coded(2).origin


def test_other_expressions_lose_codes() -> None:
    a = coded(1)
    lost = [
        lazy.transpose(a, 0, 1),
        lazy.columns(a, 0, 8),
        lazy.concat([a, a], 1),
        lazy.scale(a, 2.0),
        lazy.stack([a, coded(1, bits=8)]),
        lazy.stack([a, coded(1, zeros=False)]),
        lazy.concat([a, lazy.from_tensor(torch.ones(6, 32), "plain")], 0),
        lazy.whole("abs", torch.abs, a),
    ]
    assert all(weight.coded is None for weight in lost)
