"""How far quantized weights are from those that they stand for, beside what rounding them to nearest would cost.

Outputs of a small random model, and even its distributions, may hardly move where a weight is wrong. So every matrix is
looked at by itself, each expert's alone: its error may be that of rounding on the same grid. Methods that look at data
(GPTQ) leave larger errors on purpose; theirs may be larger as long as the matrix keeps its scale. On a trained
Llama: `hqq` 0.56 to 0.99 times the error of rounding; GPTQ 0.97 to 1.85 times, and its scale off by at most 0.0001 at
8 bits, 0.015 at 4, 0.06 at 3, 0.23 at 2. A scale that is 1.05 times too large costs 1.1 times that error at 4 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from moec.dialect import dequantize
from moec.program.dialect_call import DEQUANTIZE, DEQUANTIZE_FLOAT, DequantizeCall, DequantizeFloatCall
from moec.program.program import Program
from moec.proof.digits import at_most
from moec.quantization.grid import Grid
from moec.quantization.rounding import encode
from moec.quantization.small_floats import quantize_floats
from moec.recognition.weight_roles import PACKED
from moec.weights.lazy import Weight

ROUNDED = 1.01  # times the error of rounding to nearest; more only by what the figures' own rounding adds
FITTED = 2.5  # the same for what data moved
_SCALE = {8: 0.005, 4: 0.03, 3: 0.1, 2: 0.35}  # by how much the scale of such a matrix may be off, by width


@dataclass(frozen=True)
class WeightError:
    """The matrix of a weight that is worst.

    Attributes:
        name: of the weight. expert: of the matrix in a stack, None where it is one.
        bits: of the grid.
        relative: `‖w - dq‖ / ‖w‖`. rounded: the same for rounding to nearest on the same grid.
        scale: `⟨w, dq⟩ / ‖dq‖²` over the same of rounding: what the quantized matrix would have to be multiplied by.
    """

    name: str
    expert: int | None
    bits: int
    relative: float
    rounded: float
    scale: float

    @property
    def times(self) -> float:
        """The error in units of that of rounding."""
        if self.relative <= 1e-6:  # numbers that are on the grid
            return 0.0
        return self.relative / self.rounded if self.rounded else math.inf

    @property
    def ok(self) -> bool:
        """Whether the matrix is as near as its grid allows."""
        if at_most(self.times, ROUNDED):
            return True
        off = abs(self.scale - 1) if math.isfinite(self.scale) else math.inf
        return at_most(self.times, FITTED) and at_most(off, _SCALE[self.bits])

    @property
    def place(self) -> str:
        """The weight, and the expert in it."""
        return self.name if self.expert is None else f"{self.name}[{self.expert}]"


def weight_errors(program: Program, before: Mapping[str, Weight]) -> tuple[list[WeightError], list[str]]:
    """The worst matrix of each weight that passes quantized, and the names of those whose untouched form is not known.

    Args:
        before: weights by name before they were quantized, for those that do not say themselves what they are of. What
            is packed among them came so.
    """
    found, unknown, came = list[WeightError](), list[str](), {id(w) for w in before.values()}
    for name, node in packed_nodes(program).items():
        if id(program.weight_of(_codes(node))) in came:
            continue
        source = source_of(program, node, name, before)
        if source is None:
            unknown.append(name)
        else:
            found.append(_worst(program, node, name, source))
    return found, unknown


def packed_nodes(program: Program) -> dict[str, fx.Node]:
    """One node that unpacks each packed weight, by the name of what it stands for."""
    nodes = program.nodes(DEQUANTIZE, DEQUANTIZE_FLOAT)
    names = {n: program.weight_of(_codes(n)) is not None and str(_codes(n).target) for n in nodes}
    return {name.removesuffix(PACKED): n for n, name in names.items() if name}


def _codes(node: fx.Node) -> fx.Node:
    """What a call unpacks."""
    floats = node.target == DEQUANTIZE_FLOAT
    return DequantizeFloatCall(node).node_of("codes") if floats else DequantizeCall(node).node_of("packed")


def source_of(program: Program, node: fx.Node, name: str, before: Mapping[str, Weight]) -> Weight | None:
    """What a packed weight was made of: as it says itself, or by its name."""
    packed, shape = program.weight_of(_codes(node)), tuple(node.meta["val"].shape)
    assert packed is not None
    for weight in (*(packed.inputs[:1] if len(packed.inputs) == 1 else ()), before.get(name)):
        if weight is not None and weight.shape == shape and weight.dtype.is_floating_point:
            return weight
    return None


def _worst(program: Program, node: fx.Node, name: str, source: Weight) -> WeightError:
    floats = node.target == DEQUANTIZE_FLOAT
    given = (DequantizeFloatCall(node) if floats else DequantizeCall(node)).tensors()
    parts = [p for p in (program.weight_of(value) for value in given.values()) if p is not None]
    bits = 0 if floats else _width(program, int(node.kwargs["bits"]), parts[0])  # type: ignore[arg-type]
    pairs = _float_pairs(node, parts, source) if floats else _integer_pairs(node, parts, source, bits)
    width = bits or (8 if node.kwargs["format"] == "fp8" else 4)
    stack = len(source.shape) == 3
    errors = [WeightError(name, e if stack else None, width, *_figures(p)) for e, p in enumerate(pairs)]
    return max(errors, key=lambda e: (not e.ok, e.times))


def _width(program: Program, stored: int, packed: Weight) -> int:
    """The width of the grid behind codes of a stored width: three bits take the bytes of four, and use eight codes."""
    widths = {bits for step in program.history for bits in step.widths}
    if stored != 4 or 3 not in widths:
        return stored
    codes = packed.load()
    high, low = codes >> 4, codes & 15
    return 3 if int(torch.maximum(high, low).max()) - int(torch.minimum(high, low).min()) < 8 else stored


Triple = tuple[Tensor, Tensor, Tensor]  # rows of a matrix: as it was, as it is, and rounded to nearest


def _integer_pairs(node: fx.Node, parts: list[Weight], source: Weight, bits: int) -> Iterator[Iterator[Triple]]:
    stored, group = int(node.kwargs["bits"]), source.shape[-1] // parts[1].shape[-1]  # type: ignore[arg-type]
    positive = len(parts) == 2 and bool((parts[1].load() >= 0).all())
    grid = Grid(bits, group, symmetric=len(parts) == 2, positive_scales=positive)

    def rows(start: int, stop: int) -> Triple:
        want = source.read(start, stop)
        codes, scale, zero = encode(want, grid)
        shift = 2 ** (stored - 1) if zero is None else zero.float().unsqueeze(-1)
        steps = codes.float().reshape(*scale.shape, group) - shift
        near = (steps * scale.float().unsqueeze(-1)).flatten(-2)
        return want, dequantize(*(p.read(start, stop) for p in parts), bits=stored), near

    yield from _matrices(source, rows)


def _float_pairs(node: fx.Node, parts: list[Weight], source: Weight) -> Iterator[Iterator[Triple]]:
    unpack: Any = partial(torch.ops.moec.dequantize_float, **node.kwargs)
    near = quantize_floats(source, str(node.kwargs["format"])).parts()
    whole = [unpack(*(p.load() for p in own)) for own in (parts, near)]
    yield from _matrices(source, lambda a, b: (source.read(a, b), whole[0][a:b], whole[1][a:b]))


def _matrices(source: Weight, rows: Any) -> Iterator[Iterator[Triple]]:
    """Of each matrix, its rows block by block; an expert's are one block."""
    if len(source.shape) == 3:
        yield from (iter([rows(e, e + 1)]) for e in range(source.shape[0]))
        return
    step = max(1, 2**22 // source.shape[-1]) if not source.atomic else source.shape[0]
    yield (rows(at, min(at + step, source.shape[0])) for at in range(0, source.shape[0], step))


def _figures(blocks: Iterator[Triple]) -> tuple[float, float, float]:
    """Relative error, that of rounding, and the scale, see `WeightError`."""
    sums = torch.zeros(7, dtype=torch.float64)
    for block in blocks:
        want, got, near = (t.double() for t in block)
        off, off_near = want - got, want - near
        pairs = ((want, want), (off, off), (off_near, off_near), (want, got), (got, got), (want, near), (near, near))
        sums += torch.stack([(a * b).sum() for a, b in pairs])
    norm, error, rounding, own, own_norm, other, other_norm = sums.tolist()
    scale = (own / own_norm) / (other / other_norm) if own_norm and other and other_norm else math.inf
    return math.sqrt(error / norm) if norm else math.sqrt(error), math.sqrt(rounding / norm) if norm else 0.0, scale
