"""How many bytes weights take in the formats that engines load, to the byte: codes, scales and zero points."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from moec.errors import MoecError
from moec.planning.shape import Part, Tensor
from moec.registry import did_you_mean


class Packed(Protocol):
    """How wide engines on a device hold integers that a pass has packed."""

    def width(self, tensor: Tensor) -> int:
        """Bits of a number once the engine is loaded; 0 for what is packed in no integers."""


@dataclass(frozen=True)
class Format:
    """A way to store a matrix `[out, in]`.

    Attributes:
        name: as it is asked for.
        bits: of each number.
        group: neighbours along a row that share a scale; 0 for none, -1 for one scale a row, -2 for tiles of 128 x 128.
        scale_bits, zero_bits: of each group.
        whole_bits: once a matrix (the second scale of NVFP4).
        plain: what stays unquantized, in bits a number: routers, norms, biases, embeddings.
        state_bits: of a number that a token leaves in the state of a layer, scales counted; see `STATES`.
        apart: parts whose matrices are stored in another way.
        packed: how wide an engine holds what a pass has packed; None: as it is packed.
    """

    name: str
    bits: float
    group: int = 0
    scale_bits: int = 0
    zero_bits: int = 0
    whole_bits: int = 0
    plain: int = 16
    state_bits: float = 16
    apart: tuple[tuple[Part, Format], ...] = ()
    packed: Packed | None = None

    def matrix_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a matrix, or of a stack of them `[E, out, in]`; a vector stays plain."""
        if len(shape) < 2 or not self.group:
            return math.ceil(math.prod(shape) * (self.plain if len(shape) < 2 else self.bits) / 8)
        stack, rows, columns = math.prod(shape[:-2]), shape[-2], shape[-1]
        groups = self._groups(rows, columns)
        codes = rows * math.ceil(columns * self.bits / 8)
        return stack * (codes + math.ceil(groups * (self.scale_bits + self.zero_bits) / 8) + self.whole_bits // 8)

    def _groups(self, rows: int, columns: int) -> int:
        if self.group == -1:
            return rows
        if self.group == -2:
            return math.ceil(rows / 128) * math.ceil(columns / 128)
        return rows * math.ceil(columns / self.group)


FORMATS = {
    format.name: format
    for format in (
        Format("fp32", 32, plain=32),
        Format("bf16", 16),
        Format("fp16", 16),
        Format("fp8", 8, group=-2, scale_bits=32),  # DeepSeek-V3, arXiv 2412.19437 §3.3
        Format("int8", 8, group=64, scale_bits=16),
        Format("int4", 4, group=64, scale_bits=16),
        Format("int4-g128-zero", 4, group=128, scale_bits=16, zero_bits=4),  # GPTQ's and AWQ's usual one
        Format("int2", 2, group=64, scale_bits=16),
        Format("mxfp4", 4, group=32, scale_bits=8),  # OCP Microscaling 1.0
        Format("nvfp4", 4, group=16, scale_bits=8, whole_bits=32),
    )
}
STATES = {"bf16": 16.0, "fp8": 8.0, "int8": 8 + 16 / 64}  # of keys and values; fp8 has a scale a layer, int8 one in 64
_PLAIN: tuple[Part, ...] = ("router", "norm", "input embedding")


def find_format(name: str) -> Format:
    """The format of this name. Raises M202 with the nearest names."""
    if name in FORMATS:
        return FORMATS[name]
    raise MoecError("M202", f"no format is called {name!r}", "--format", did_you_mean(name, list(FORMATS)))


def with_state(format: Format, state: str) -> Format:
    """The same with keys and values in `bf16`, `fp8` or `int8`. Raises M202 for another word."""
    if state not in STATES:
        raise MoecError(
            "M202", f"no format of the state is called {state!r}", "--state", did_you_mean(state, list(STATES))
        )
    return replace(format, state_bits=STATES[state])


def recipe_format(name: str) -> Format:
    """The format of a recipe, which packs weights one by one: what it leaves is in 16 bits."""
    return Format(name, 16)


def stored_bytes(tensors: Iterable[Tensor], format: Format) -> dict[Part, int]:
    """Bytes by part: matrices in the format, the router, norms, vectors and the table of the input embedding plain;
    what a pass has packed takes what it is packed in."""
    found: dict[Part, int] = {}
    apart = dict(format.apart)
    for tensor in tensors:
        plain = tensor.part in _PLAIN or len(tensor.shape) < 2
        size = tensor.count * format.plain // 8 if plain else apart.get(tensor.part, format).matrix_bytes(tensor.shape)
        if tensor.codes:
            size = _packed_bytes(tensor, format)
        found[tensor.part] = found.get(tensor.part, 0) + size
    return found


def _packed_bytes(tensor: Tensor, format: Format) -> int:
    width = format.packed.width(tensor) if format.packed else tensor.bits
    if format.packed and width >= format.plain:
        return tensor.count * format.plain // 8  # unpacked: no scales are left
    codes = tensor.codes * width // tensor.bits if width else tensor.codes
    return codes + tensor.scales * format.plain // 8
