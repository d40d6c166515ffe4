"""A block's experts as a chain of moec's own kernels, compiled ahead of time for one GPU: what `plugins` puts into a
network.

The kernels are those that PyTorch gets on CUDA (`moec.kernels.launch`), written down instead of started: their tables,
grids and constants are taken over, and what depends on the number of tokens becomes a `Size`. One kernel holds for all
profiles of an engine, so the most tokens of a call decide whether pairs are sorted by expert (`align`), and how many
rows a tile has.

Whoever launches a kernel has to ask the driver for more than 48 KiB of shared memory, and it is not known whether
TensorRT does: tiles are cut until they need no more. The PTX is of an old version, so that the driver which reads it
may be old too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.backends.tensorrt.plugins import packed_file
from moec.backends.tensorrt.plugins.network import ChainStep, OutputTensor, Size
from moec.backends.tensorrt.plugins.ptx import for_plugin
from moec.dialect import Activation
from moec.errors import MoecError
from moec.kernels import launch
from moec.kernels.ahead import SHARED_LIMIT_BYTES, Compiled, compile_ahead
from moec.kernels.packed import ExpertCodes
from moec.kernels.starting import Launch, recording
from moec.kernels.tiles import Tile, rows_for, tile_for

SHARED_BYTES = 48 * 1024  # a program's shared memory that every launch may have
ISA = {80: 80, 86: 80, 87: 80, 89: 80, 90: 80, 120: 87, 121: 88}  # PTX versions; those of CUDA 12.0, 12.8 and 12.9
_SHORT, _NARROW, _WIDE = 32, 32, 128  # a step's least depth and columns; columns above which stages are worth more


@dataclass(frozen=True)
class ChainSizes:
    """What the kernels of a block depend on.

    Attributes:
        experts, top_k, hidden, inner: E, K, H, I.
        tokens: the most of a call.
        dtype: of tokens and matrices, `float16`.
        activation: between the two products. score_before: weights multiply the experts' input.
        b_in, b_out: dtypes of the biases, empty where there are none.
        packed_in, packed_out: bits and group of packed matrices, whose scales are of `dtype`; empty for plain ones.
        turned: whether the second matrix stands as `[E, I, H]`, not `[E, H, I]`.
    """

    experts: int
    top_k: int
    hidden: int
    inner: int
    tokens: int
    dtype: str
    activation: Activation
    score_before: bool = False
    b_in: str = ""
    b_out: str = ""
    packed_in: tuple[int, ...] = ()
    packed_out: tuple[int, ...] = ()
    turned: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ChainSizes:
        """Read what `dataclasses.asdict` gave."""
        packed = {name: tuple(data[name]) for name in ("packed_in", "packed_out")}
        return cls(**{**data, "activation": Activation(**data["activation"]), **packed})


@dataclass(frozen=True)
class Kernel:
    """One kernel of a chain before it is compiled: how it would be started, and the sizes of that; numbers by the
    kernel's own names."""

    launch: Launch
    inputs: tuple[str, ...]
    numbers: dict[str, Size]
    outputs: tuple[OutputTensor, ...]
    grid: tuple[Size, ...]


def kernels(sizes: ChainSizes, sm: int, tile: Tile | None = None) -> list[Kernel]:
    """The chain of a block on compute capability `sm`; tiles of the table, cut to fit, unless `tile` says which."""
    with recording(sm) as found:
        tensors = _tensors(sizes)
        launch.experts(*tensors, rule=sizes.activation, score_before=sizes.score_before, tile=tile or _tile(sizes, sm))
    return [_kernel(sizes, started) for started in found.launches]


def _tensors(sizes: ChainSizes) -> list[Any]:
    def empty(*shape: int, dtype: str = sizes.dtype) -> Tensor:
        return torch.empty(*shape, dtype=getattr(torch, dtype), device="meta")

    def matrix(packed: tuple[int, ...], *shape: int) -> Tensor | ExpertCodes:
        if not packed:
            return empty(*shape)
        (bits, group), (*rows, depth) = packed, shape
        return ExpertCodes(
            empty(*rows, depth * bits // 8, dtype="uint8"), empty(*rows, depth // group), bits=bits, group=group
        )

    experts, top_k, hidden, inner, wide = (
        sizes.experts,
        sizes.top_k,
        sizes.hidden,
        sizes.inner,
        sizes.activation.rows_per_neuron * sizes.inner,
    )
    w_out = (
        empty(experts, inner, hidden).transpose(1, 2)
        if sizes.turned
        else matrix(sizes.packed_out, experts, hidden, inner)
    )
    biases = (empty(experts, n, dtype=d) if d else None for n, d in ((wide, sizes.b_in), (hidden, sizes.b_out)))
    ids, weights = (empty(sizes.tokens, top_k, dtype=dtype) for dtype in ("int64", "float32"))
    return [empty(sizes.tokens, hidden), ids, weights, matrix(sizes.packed_in, experts, wide, hidden), w_out, *biases]


def _tile(sizes: ChainSizes, sm: int) -> Tile:
    item = getattr(torch, sizes.dtype).itemsize
    packed = [*sizes.packed_in[1:], *sizes.packed_out[1:]]
    kind = "packed" if packed else "single" if item == 4 else "half"
    tile = tile_for(sm, kind, rows_for(sizes.tokens, sizes.top_k, sizes.experts), min(packed, default=0))
    tile = replace(tile, resident=0)  # a plugin's grid is a formula of the tokens, not of the GPU's multiprocessors
    while (tile.rows + tile.columns) * tile.depth * item * tile.stages > SHARED_BYTES:
        tile = _smaller(tile)
    return tile


def _smaller(tile: Tile) -> Tile:
    if tile.depth > _SHORT:
        return replace(tile, depth=tile.depth // 2)
    if tile.stages > 2 and tile.columns <= _WIDE:
        return replace(tile, stages=tile.stages - 1)
    return replace(tile, columns=max(tile.columns // 2, _NARROW))


# ---------------------------------------------------------------------- one kernel
_NAMES = {
    "rows_in_kernel": {"w": "w_in", "scale": "s_in", "bias": "b_in"},
    "rows_out_kernel": {"w": "w_out", "scale": "s_out", "bias": "b_out"},
}
_TABLES = ("order", "offsets", "tile_expert")


def _kernel(sizes: ChainSizes, started: Launch) -> Kernel:
    """What the plugin of one launch is; raises where the two would not agree."""
    name, arguments = started.kernel.__name__, dict(started.arguments)
    few = bool(arguments.get("FEW", False))
    before = arguments.get("BEFORE")
    unread = {*(_TABLES if few else ()), *(["route_weights"] if before == (name == "combine_kernel") else [])}
    arguments |= {key: None for key in unread if key in arguments}
    arguments["ids"] = torch.empty(arguments["ids"].shape, dtype=torch.int32, device="meta")  # as the network has them
    numbers, made, grid = _layout(sizes, name, arguments, few, started.arguments.get("ROWS", 1))
    tensors = [key for key, value in arguments.items() if isinstance(value, Tensor)]
    names = _NAMES.get(name, {})
    inputs = tuple(names.get(key, key) for key in tensors[: len(tensors) - len(made)])
    kernel = Kernel(replace(started, arguments=arguments), inputs, numbers, made, grid)
    _demand_agreement(sizes, kernel, tensors)
    return kernel


def _layout(
    sizes: ChainSizes, name: str, arguments: Mapping[str, Any], few: bool, rows: int
) -> tuple[dict[str, Size], tuple[OutputTensor, ...], tuple[Size, ...]]:
    """Numbers by name, outputs and grid of a kernel."""
    pairs, tokens, columns = Size(sizes.top_k), Size(1), arguments.get("BLOCK_N") or arguments["BLOCK"]
    tiles = pairs if few else Size(sizes.top_k, rows, sizes.experts)
    if name == "count_kernel":
        blocks = Size(sizes.top_k, columns, 1)
        return {"pairs": pairs}, (OutputTensor("counts", "int32", (blocks, Size(plus=sizes.experts))),), (blocks,)
    if name == "align_kernel":
        shapes = {"order": pairs, "offsets": Size(plus=sizes.experts + 1), "tile_expert": tiles}
        return (
            {"pairs": pairs, "tiles": tiles},
            tuple(OutputTensor(n, "int32", (s,)) for n, s in shapes.items()),
            (Size(plus=sizes.experts),),
        )
    width = Size(plus=sizes.inner if name == "rows_in_kernel" else sizes.hidden)
    across = -(-width.plus // columns)
    if name == "combine_kernel":
        return {}, (OutputTensor("out", sizes.dtype, (tokens, width)),), (tokens, Size(plus=across))
    made = OutputTensor("hidden" if name == "rows_in_kernel" else "result", sizes.dtype, (pairs, width))
    return {"tokens": tokens, "tiles": tiles}, (made,), (replace(tiles, columns=across),)


def _demand_agreement(sizes: ChainSizes, kernel: Kernel, tensors: Sequence[str]) -> None:
    """Raise unless plugin and launch are the same for the tokens that the launch was written down for."""
    started, at, inputs = kernel.launch, sizes.tokens, len(kernel.inputs)
    wanted = [*tensors[:inputs], *kernel.numbers, *tensors[inputs:]]
    made = [(tuple(size.of(at) for size in m.shape), getattr(torch, m.dtype)) for m in kernel.outputs]
    same = (
        [key for key in started.arguments if key in wanted] == wanted
        and tuple(size.of(at) for size in kernel.grid) == started.grid
        and all(size.of(at) == started.arguments[key] for key, size in kernel.numbers.items())
        and made == [(tuple(t.shape), t.dtype) for t in (started.arguments[key] for key in tensors[inputs:])]
    )
    if not same:
        raise _refused(started.kernel.__name__, "is started otherwise than its plugin would be")


# ---------------------------------------------------------------------- compiled
@lru_cache(8)
def compiled(sizes: ChainSizes, sm: int) -> tuple[tuple[ChainStep, str, Compiled], ...]:
    """The chain of a block as machine code: steps, their PTX, and what the compiler says of it. About a second a
    kernel.

    Raises:
        MoecError: M208 when a kernel needs what a plugin cannot have.
    """
    return tuple(_compiled(kernel, sm) for kernel in kernels(sizes, sm))


def _compiled(kernel: Kernel, sm: int) -> tuple[ChainStep, str, Compiled]:
    code = compile_ahead(kernel.launch, sm, fixed=True, isa=ISA[sm])
    demand_plain(code, sm)
    ptx = for_plugin(code.ptx, code.name, len(kernel.inputs) + len(kernel.numbers) + len(kernel.outputs))
    numbers = tuple(kernel.numbers.values())
    described = repr((kernel.inputs, numbers, kernel.outputs, kernel.grid, code.warps, code.shared_bytes, ptx))
    plugin = f"{code.name.removesuffix('_kernel')}_{hashlib.sha256(described.encode()).hexdigest()[:12]}"
    step = ChainStep(
        plugin,
        code.name,
        f"{plugin}.ptx",
        kernel.inputs,
        numbers,
        kernel.outputs,
        kernel.grid,
        32 * code.warps,
        code.shared_bytes,
    )
    return step, ptx, code


def demand_plain(code: Compiled, sm: int) -> None:
    """Raise M208 unless a launch that knows nothing of Triton can start this: no scratch, no more than the usual shared
    memory, its own threads."""
    if code.scratch_bytes:
        raise _refused(code.name, f"needs {code.scratch_bytes} bytes of scratch memory")
    if code.shared_bytes > min(SHARED_BYTES, SHARED_LIMIT_BYTES[sm]):
        raise _refused(code.name, f"needs {code.shared_bytes} bytes of shared memory, more than {SHARED_BYTES}")
    if f".reqntid {32 * code.warps}\n" not in code.ptx:
        raise _refused(code.name, f"was not compiled for {32 * code.warps} threads")


def _refused(name: str, what: str) -> MoecError:
    return MoecError("M208", f"the kernel {name} {what}", name, "take lowering=dense or gathered, and report this")


def compile_chains(
    blocks: Sequence[Mapping[str, Any]], folder: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Compile the chains of blocks, and write their PTX and packed weights into a folder.

    Args:
        blocks: `kernels` of facts of `moe.lower_experts`, whose `packed` weights are lazy; equal sizes are compiled
            once.

    Returns:
        The blocks with `steps` for `plugins.splice` instead of `sizes`; and a row a kernel for the report.
    """
    found, rows = [], {}
    packed = packed_file.write(folder, [block["packed"] for block in blocks])
    for block, records in zip(blocks, packed, strict=True):
        chain = compiled(ChainSizes.from_dict(block["sizes"]), block["sm"])
        for step, ptx, code in chain:
            (folder / step.ptx).write_text(ptx)
            rows[step.plugin] = {
                "kernel": step.kernel,
                "file": step.ptx,
                "threads": step.threads,
                "registers": code.registers,
                "spilled bytes": code.spilled_bytes,
                "shared bytes": step.shared_bytes,
            }
        found.append(
            {
                **{k: v for k, v in block.items() if k != "sizes"},
                "packed": records,
                "steps": [step.to_dict() for step, _, _ in chain],
            }
        )
    return found, list(rows.values())
