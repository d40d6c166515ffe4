"""Grids: what the bytes say is what was meant, errors are bounded by the width, and refinement is never worse than
rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from moec.dialect import dequantize, pack
from moec.quantization import rounding
from moec.quantization.grid import Grid
from moec.quantization.rounding import encode, quantize_weight
from moec.weights import lazy as weights
from moec.weights.lazy import from_file, from_tensor
from moec.weights.shards import write_shards
from moec.weights.weight import PackedWeight, Weight, blocks_of

# relative error of normal numbers in groups of 32: measured 0.0053, 0.087 and 0.37 by rounding; each bound is broken by
# half the bits
BOUNDS = {8: 0.006, 4: 0.1, 2: 0.4}
GRIDS = [
    Grid(bits, 32, symmetric, method) for bits in (2, 4, 8) for symmetric in (True, False) for method in ("rtn", "hqq")
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decoded(parts: PackedWeight, bits: int) -> Tensor:
    return dequantize(
        parts.packed.load(), parts.scale.load(), None if parts.zero is None else parts.zero.load(), bits=bits
    )


def error(value: Tensor, grid: Grid) -> float:
    found = decoded(quantize_weight(from_tensor(value, "w"), grid), grid.bits)
    return float((found.double() - value.double()).norm() / value.double().norm())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_written_bytes_are_what_was_meant(grid: Grid, tmp_path: Path) -> None:
    value = normal(3, 5, 64)
    codes, scale, zero = encode(value, grid)
    meant = (
        codes.double() - (2 ** (grid.bits - 1) if zero is None else zero.double().repeat_interleave(32, -1))
    ) * scale.double().repeat_interleave(32, -1)
    parts = quantize_weight(from_tensor(value, "w"), grid)
    names = dict(zip(("packed", "scale", "zero"), parts.parts(), strict=False))
    (file,) = write_shards(tmp_path, names, 2**40)
    read = [from_file(file, name).load() for name in names]
    found = dequantize(*read, bits=grid.bits)
    torch.testing.assert_close(found.double(), meant, rtol=1e-6, atol=0)
    read[0] = read[0].flip(-1)  # bytes in another order
    assert not torch.allclose(dequantize(*read, bits=grid.bits).double(), meant, rtol=0.1)


@pytest.mark.parametrize("method", ["rtn", "hqq"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BOUNDS)
def test_error_is_bounded_by_the_width(bits: int, symmetric: bool, method: str) -> None:
    value = normal(64, 256)
    bound = BOUNDS[bits] * (1.0 if symmetric else 1.2)
    assert error(value, Grid(bits, 32, symmetric, method)) < bound
    if bits > 2:
        assert error(value, Grid(bits // 2, 32, symmetric, method)) > bound


@pytest.mark.parametrize("symmetric", [True, False])
def test_three_bits_have_their_own_error_and_the_bytes_of_four(symmetric: bool) -> None:
    grid, value = Grid(3, 32, symmetric), normal(64, 256)
    parts = quantize_weight(from_tensor(value, "w"), grid)
    assert parts.packed.shape == (64, 128) and "3 bit in 4" in str(grid)
    found = float((decoded(parts, grid.stored) - value).norm() / value.norm())
    assert error(value, Grid(4, 32, symmetric)) * 1.5 < found < error(value, Grid(2, 32, symmetric)) / 1.5


def test_smaller_groups_are_closer() -> None:
    errors = [error(normal(64, 256), Grid(4, group)) for group in (16, 32, 64, 128)]
    assert errors == sorted(errors) and errors[-1] > 1.2 * errors[0]


def test_the_largest_number_is_exact_whatever_its_sign() -> None:
    value = normal(16, 32) * 0.1
    value[:8, 3], value[8:, 3] = 1.7, -1.7
    codes, scale, _ = encode(value, Grid(4, 32))
    assert (codes[:, 3] == 0).all() and (scale[:8] < 0).all() and (scale[8:] > 0).all()
    found = decoded(quantize_weight(from_tensor(value, "w"), Grid(4, 32)), 4)
    torch.testing.assert_close(found[:, 3], value[:, 3])
    unsigned = (value / scale.abs()).round().clamp(-8, 7) * scale.abs()  # what scales without a sign would do to it
    assert float((unsigned[:8, 3] - value[:8, 3]).abs().min()) > 0.1


@pytest.mark.parametrize("method", ["rtn", "hqq"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_positive_scales_are_positive_and_cost_a_little(bits: int, method: str) -> None:
    value = normal(64, 256)
    value[:, :32] = 0
    signed, positive = Grid(bits, 32, method=method), Grid(bits, 32, method=method, positive_scales=True)
    scale = quantize_weight(from_tensor(value, "w"), positive).scale.load()
    assert bool((scale > 0).all()) and not bool(
        (quantize_weight(from_tensor(value, "w"), signed).scale.load() > 0).all()
    )
    assert "positive scales" in str(positive) and "positive" not in str(signed)
    assert (
        0.99 * error(value, signed)
        < error(value, positive)
        < {8: 1.02, 4: 1.15, 2: 1.9 if method == "rtn" else 1.3}[bits] * error(value, signed)
    )
    assert bool((decoded(quantize_weight(from_tensor(value, "w"), positive), bits)[:, :32] == 0).all())


def test_positive_scales_of_tiny_numbers() -> None:
    value = torch.full((2, 32), 6e-8, dtype=torch.float16)
    for method in ("rtn", "hqq"):
        parts = quantize_weight(from_tensor(value, "w"), Grid(4, 32, method=method, positive_scales=True))
        assert bool((parts.scale.load() > 0).all()) and bool((decoded(parts, 4).abs() <= 1e-6).all())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_refinement_is_nowhere_worse_and_mostly_better(bits: int, symmetric: bool) -> None:
    value = torch.distributions.StudentT(4.0).sample((64, 256)) if bits == 2 else normal(64, 256)
    rounded, refined = (
        decoded(quantize_weight(from_tensor(value, "w"), Grid(bits, 32, symmetric, m)), bits) for m in ("rtn", "hqq")
    )
    before, after = ((x - value).square().reshape(-1, 32).sum(-1) for x in (rounded, refined))
    assert bool((after <= before * (1 + 1e-5)).all())
    assert float((after < 0.999 * before).float().mean()) > 0.5 and float(after.sum()) < 0.95 * float(before.sum())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_extreme_groups(grid: Grid) -> None:
    value = torch.zeros(6, 32, dtype=torch.float16)
    value[1], value[2], value[3], value[4, 0] = 6e-8, 3.0, -3.0, 60000.0
    found = decoded(quantize_weight(from_tensor(value, "w"), grid), grid.bits)
    assert found.isfinite().all() and not found[0].any()
    torch.testing.assert_close(found[2:5], value[2:5], rtol=2e-3, atol=0)  # one magnitude a group: every grid holds it


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scales_have_the_dtype_of_the_weight_and_codes_know_their_rounding(dtype: torch.dtype) -> None:
    value = normal(64, 256).to(dtype)
    parts = quantize_weight(from_tensor(value, "w"), Grid(8, 32))
    assert parts.scale.dtype == parts.scale.load().dtype == dtype and parts.packed.dtype == torch.uint8
    scale, codes = parts.scale.load().double(), parts.packed.load().double() - 128
    steps = (value.double().reshape(64, -1, 32) / scale.unsqueeze(-1) - codes.reshape(64, -1, 32)).abs()
    assert (
        float(steps[codes.reshape(64, -1, 32) < 127].max()) < 0.51
    )  # rounded with the scale that is kept, not with a finer one


# ---------------------------------------------------------------------- laziness
def test_any_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    save_file({"w": normal(6, 5, 64)}, tmp_path / "w.safetensors")
    source = from_file(tmp_path / "w.safetensors", "w")
    for grid in (Grid(4, 32), Grid(4, 32, False, "hqq")):
        for part in quantize_weight(source, grid).parts():
            whole = part.load()
            assert tuple(whole.shape) == part.shape and whole.dtype == part.dtype
            assert (
                torch.equal(torch.cat(list(part.blocks(1))), whole)
                and torch.equal(part.read(2, 5), whole[2:5])
                and part.read(3, 3).shape[0] == 0
            )


def test_rows_are_read_a_block_at_a_time() -> None:
    asked: list[int] = []

    def watch(value: Tensor) -> Tensor:
        asked.append(value.shape[0] if value.device.type != "meta" else 0)
        return value

    source = weights.rowwise("watched", watch, from_tensor(torch.zeros(64, 1024, 1024), "w"))
    packed = quantize_weight(source, Grid(4, 128)).packed
    assert max(asked) == 0  # nothing is read before it is needed
    assert packed.read(0, 24).shape == (24, 1024, 512) and max(asked) == 16  # 64 MiB of float32
    assert (
        weights.whole("whole", watch, source).atomic
        and quantize_weight(weights.whole("whole", watch, source), Grid(4, 128)).packed.atomic
    )


def test_equal_origins_mean_equal_content() -> None:
    source = from_tensor(normal(4, 64), "w")
    texts = [w.origin for grid in GRIDS for w in quantize_weight(source, grid).parts()]
    assert len(set(texts)) == len(texts) and quantize_weight(source, GRIDS[0]).packed.origin == texts[0]


def noted(value: Tensor, asked: list[int]) -> Weight:
    """Experts `[E, out, in]` one by one, each of which notes how many rows are read."""

    def expert(e: int) -> Weight:
        def read(start: int, stop: int) -> Tensor:
            asked.append(stop - start)
            return value[e, start:stop]

        return Weight(tuple(value.shape[1:]), value.dtype, f"expert {e}", read, by_rows=True)

    return weights.stack([expert(e) for e in range(len(value))])


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(4, 32, symmetric=False), Grid(8, 32)], ids=str)
def test_the_bytes_do_not_depend_on_threads_and_pieces(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    value, before = normal(6, 40, 64), torch.get_num_threads()
    want = encode(value, grid)
    monkeypatch.setattr("moec.weights.weight.PIECE", 256)
    monkeypatch.setattr("moec.quantization.rounding._REMEMBERED_BYTES", 0)
    for threads in (1, 2):
        try:
            torch.set_num_threads(threads)
            parts = quantize_weight(noted(value, []), grid).parts()
            found = [torch.cat([part.read(a, a + 2) for a in (0, 2, 4)]) for part in parts]
        finally:
            torch.set_num_threads(before)
        assert torch.equal(found[0], pack(want[0], grid.bits)) and torch.equal(found[1], want[1])
        assert (want[2] is None and len(found) == 2) or torch.equal(found[2], want[2])  # type: ignore[arg-type]
        assert not torch.equal(found[1].roll(1, 0), want[1])


def test_scales_wait_across_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moec.quantization.rounding._REMEMBERED_BYTES", 0)
    value = normal(6, 40, 64)
    parts = quantize_weight(noted(value, []), Grid(4, 32))
    with torch.inference_mode():
        parts.packed.read(0, 2)
    parts.packed.read(2, 6)
    assert torch.equal(parts.scale.read(0, 6), encode(value, Grid(4, 32))[1])


def test_scales_wait_for_their_turn_where_memory_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moec.quantization.rounding._REMEMBERED_BYTES", 0)
    value, asked = normal(6, 40, 64), list[int]()
    parts = quantize_weight(noted(value, asked), Grid(4, 32))
    for _ in (parts.packed.read(0, 4), parts.packed.read(4, 6), parts.scale.read(0, 6)):
        pass
    assert sum(asked) == 6 * 40, "each row is read once"
    assert rounding._waiting.cache_info().currsize == 0, "and none waits any longer"
    parts = quantize_weight(noted(value, asked), Grid(4, 32))
    parts.packed.read(0, 4)
    asked.clear()
    assert torch.equal(parts.scale.read(2, 6), encode(value, Grid(4, 32))[1][2:6])
    assert sum(asked) == 2 * 40, "only those that are missing are made"
    asked.clear()
    with blocks_of(2**20):
        parts = quantize_weight(noted(value, asked), Grid(4, 32))
        parts.packed.load()
        parts.scale.load()
    assert sum(asked) == 2 * 6 * 40, "nothing waits under a limit"
