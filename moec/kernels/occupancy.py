"""How long a product of experts takes on a GPU, from its tile alone: the model behind the lines of `tiles.toml` that
nobody has measured.

A product runs as programs: one for each tile of rows and each block of columns. The model says, in this order:

1. How many programs a multiprocessor holds: registers, shared memory and warps each allow so many, and the least counts
   (CUDA programming guide, technical specifications; a program costs 1 KiB of shared memory more than it asks for).
2. How many bytes are under way: programs that run at once, times the stages but one of each. Memory sends no faster
   than bytes under way divided by its latency (Little's law), nor than `BANDWIDTH_SHARE` of what the data sheet says.
3. What goes through the L2 cache: each program reads its rows of both operands, whether memory has to send them or not.
   This is what narrow tiles cost.
4. How long the matrix units take: whole tiles, padding included, in whole rounds of the multiprocessors.
5. How long packed weights take to unpack: instructions a weight, as counted in the machine code.
6. The longest of these, and `START_S` for a kernel's start and its first bytes.

Nothing here was measured by us. The shares are what the best published kernels reach on an H200, and `estimate` is held
against their times by `tests/kernels/test_occupancy.py`. A measurement corrects the constants below, or, better, the
line of the table: `benchmarks/moe_gpu.py --tune` writes those, and they come first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moec.kernels.ahead import SHARED_LIMIT_BYTES
from moec.kernels.tiles import FEW_TOKENS, Tile, rows_for

BANDWIDTH_SHARE, MATRIX_SHARE, ISSUE_SHARE = 0.88, 0.82, 0.7
OLD_UNIT_SHARE = 0.6  # of a Hopper's rate by `mma.sync`, which tiles of fewer than 64 rows take
LATENCY_S, START_S = 8e-7, 1.5e-6  # of device memory when busy; of a kernel until its first product
CACHE_BYTES_A_CYCLE = 48.0  # of the 64 that a multiprocessor may have from the L2 cache
STEP_CYCLES = 120.0  # of a step's wait, barrier and address arithmetic, which other programs hide
REGISTERS, RESERVED_BYTES, PROGRAMS = 65536, 1024, 32  # of a multiprocessor; of a program; at most
OTHER_REGISTERS = {"half": 60, "single": 60, "packed": 95}  # of a thread, beside its sums
WEIGHT_BYTES = {"half": 2.0, "single": 4.0, "packed": 0.5}
INSTRUCTIONS = {"half": 0.0, "single": 0.0, "packed": 5.0}  # to unpack one weight, of a thread


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet.

    Attributes:
        sm: compute capability. bandwidth: bytes a second. rate: bfloat16 operations a second, dense.
        shared_bytes, warps: of a multiprocessor. clock: cycles a second.
    """

    sm: int
    multiprocessors: int
    bandwidth: float
    rate: float
    shared_bytes: int
    warps: int
    clock: float


DEVICES = {
    "A100": Device(80, 108, 2.04e12, 312e12, 167_936, 64, 1.41e9),
    "L40S": Device(89, 142, 0.864e12, 362e12, 102_400, 48, 2.52e9),
    "H200": Device(90, 132, 4.8e12, 989e12, 233_472, 64, 1.755e9),
    "B200": Device(100, 148, 8.0e12, 2250e12, 233_472, 64, 1.85e9),
    "RTX PRO 6000": Device(120, 188, 1.79e12, 503e12, 102_400, 48, 2.6e9),
}


@dataclass(frozen=True)
class ExpertSizes:
    """A block with gated experts: E, K, H, I."""

    experts: int
    top_k: int
    hidden: int
    inner: int


# the blocks whose times others have published
KNOWN = {
    "Mixtral-8x7B": ExpertSizes(8, 2, 4096, 14336),
    "Qwen3-30B-A3B": ExpertSizes(128, 8, 2048, 768),
    "DeepSeek-V3": ExpertSizes(256, 8, 7168, 2048),
}
TOKENS = (1, 2, 4, 8, 16, 64, 256, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Estimate:
    """One product.

    Attributes:
        programs: of the grid that have work. resident: at once on a multiprocessor.
        bytes: that device memory has to send. seconds: all in all.
        bound: `bandwidth`, `cache`, `matrix` or `unpacking`.
    """

    programs: int
    resident: int
    bytes: float
    seconds: float
    bound: str


def shared_bytes(tile: Tile, kind: str) -> int:
    """Of a program: tokens and weights of every stage, and packed weights once more, unpacked."""
    token = 4 if kind == "single" else 2
    unpacked = tile.columns * tile.depth * token if kind == "packed" else 0
    return int(tile.stages * tile.depth * (tile.rows * token + tile.columns * WEIGHT_BYTES[kind])) + unpacked


def registers(tile: Tile, kind: str) -> int:
    """Of a thread, roughly: its sums, and the rest."""
    return tile.rows * tile.columns // (32 * tile.warps) + OTHER_REGISTERS[kind]


def resident(tile: Tile, kind: str, device: Device) -> int:
    """Programs that a multiprocessor holds at once; 0 where not even one fits."""
    shared = shared_bytes(tile, kind)
    if shared > SHARED_LIMIT_BYTES[device.sm] or registers(tile, kind) > 255:
        return 0
    by_registers = REGISTERS // (-(-registers(tile, kind) // 8) * 8 * 32 * tile.warps)
    by_shared = device.shared_bytes // (shared + RESERVED_BYTES)
    return min(by_registers, by_shared, device.warps // tile.warps, PROGRAMS)


def chosen(sizes: ExpertSizes, tokens: int) -> float:
    """How many experts are expected to have tokens when all are alike."""
    return sizes.experts * (1.0 - (1.0 - sizes.top_k / sizes.experts) ** tokens)


def product(sizes: ExpertSizes, tokens: int, tile: Tile, kind: str, device: Device, first: bool) -> Estimate:
    """The first product of a block (gate and up), or the second."""
    width, depth = (2 * sizes.inner, sizes.hidden) if first else (sizes.hidden, sizes.inner)
    experts, pairs, held = chosen(sizes, tokens), tokens * sizes.top_k, resident(tile, kind, device)
    if not held:
        return Estimate(0, 0, 0.0, math.inf, "nothing fits")
    each = pairs / experts  # the last tile of an expert is half full, whatever the split
    tiles = experts * (1.0 if each <= tile.rows else each / tile.rows + 0.5)
    programs = math.ceil(tiles * -(-width // tile.columns))
    moved = experts * width * depth * WEIGHT_BYTES[kind] + 2.0 * pairs * (depth + width)
    step = tile.columns * WEIGHT_BYTES[kind] + tile.rows * (4.0 if kind == "single" else 2.0)  # bytes a unit of depth
    under_way = min(programs, held * device.multiprocessors) * (tile.stages - 1) * tile.depth * step
    by = {
        "cache": programs * depth * step / (CACHE_BYTES_A_CYCLE * device.clock * device.multiprocessors),
        "bandwidth": moved / min(device.bandwidth * BANDWIDTH_SHARE, under_way / LATENCY_S),
        "matrix": _matrix_seconds(tile, programs, depth, kind, device),
        "unpacking": _issued_seconds(tile, programs, depth, kind, held, device),
    }
    bound = max(by, key=lambda name: by[name])
    return Estimate(programs, held, moved, START_S + by[bound], bound)


def _matrix_seconds(tile: Tile, programs: int, depth: int, kind: str, device: Device) -> float:
    """Rounds of the multiprocessors, each as long as one program takes on one of them."""
    old = device.sm == 90 and tile.rows < 64
    rate = device.rate * MATRIX_SHARE * (OLD_UNIT_SHARE if old else 1.0) / (16.0 if kind == "single" else 1.0)
    rounds = math.ceil(programs / device.multiprocessors)
    return rounds * 2.0 * tile.rows * tile.columns * depth * device.multiprocessors / rate


def _issued_seconds(tile: Tile, programs: int, depth: int, kind: str, held: int, device: Device) -> float:
    """A multiprocessor starts four instructions of 32 threads a cycle; and every step costs its wait."""
    unpacked = INSTRUCTIONS[kind] * tile.columns * depth / (128 * device.clock * ISSUE_SHARE)
    waits = STEP_CYCLES * math.ceil(depth / tile.depth) / (device.clock * min(held, 4))
    return math.ceil(programs / device.multiprocessors) * (unpacked + waits)


def estimate(sizes: ExpertSizes, tokens: int, tile: Tile, kind: str, device: Device) -> float:
    """Seconds of a block's experts: both products, sorting where there are more than a few tokens, and the sum."""
    others = 1 if tokens <= FEW_TOKENS else 3
    gathered = 2.0 * tokens * sizes.hidden * (sizes.top_k + 1) / (device.bandwidth * BANDWIDTH_SHARE)
    both = sum(product(sizes, tokens, tile, kind, device, first).seconds for first in (True, False))
    return both + others * START_S + gathered


def derive(rows: int, kind: str, device: Device, among: Sequence[Tile]) -> Tile:
    """The tile with the least estimated time over the known blocks: a geometric mean over every number of tokens for
    which tiles have so many rows. Of those within 1 % of each other the first of `among`, so that what is there stays
    unless the model has a reason."""
    costs = {tile: cost(tile, rows, kind, device) for tile in among if resident(tile, kind, device)}
    least = min(costs.values())
    return next(tile for tile in costs if costs[tile] <= 1.01 * least)


def cost(tile: Tile, rows: int, kind: str, device: Device) -> float:
    """Geometric mean of `estimate` in seconds over the known blocks, for the tokens that take so many rows."""
    cells = [(s, t) for s in KNOWN.values() for t in TOKENS if rows_for(t, s.top_k, s.experts) == rows]
    return math.exp(sum(math.log(estimate(s, t, tile, kind, device)) for s, t in cells) / len(cells))
