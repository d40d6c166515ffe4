"""The header of a GGUF file, walked with bounds before a library reads it.

The package `gguf` believes every count and length: one that is past the end makes it append for ever. Here each is held
against the bytes that are left. Spec: docs/gguf.md in ggml's repository.
"""

from __future__ import annotations

import mmap
import struct
from math import prod
from pathlib import Path

from moec.errors import MoecError

AGAIN = "download the file again"
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a number, by its type
_TEXT, _LIST, _DEEPEST = 8, 9, 4
_LEAST_FIELD, _LEAST_TENSOR = 13, 32  # bytes
_MOST_DIMENSIONS = 4  # of a tensor in ggml
_MOST_PER_BYTE = 8  # numbers


def check_header(path: Path) -> None:
    """Look at the header of a file.

    Raises:
        MoecError: M204 for a file that is none or is cut short, and for counts, lengths and shapes that do not fit into
            it; M206 for one of the other byte order.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            swapped = _walk(_Cursor(data))
    except (ValueError, RecursionError) as error:
        raise MoecError("M204", f"it is no GGUF file, or a part of one: {error}", str(path), AGAIN) from error
    if swapped:
        fix = "turn its bytes around, in place: gguf-convert-endian MODEL.gguf little"
        raise MoecError("M206", "the GGUF file is not read: its numbers are big-endian", str(path), fix)


class _Cursor:
    """A place in the file, which never passes its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def bytes(self, count: int) -> bytes:
        self.skip(count)
        return self._data[self._at - count : self._at]

    def skip(self, count: int) -> None:
        self.require(count)
        self._at += count

    def require(self, count: int) -> None:
        """Raise ValueError where fewer bytes are left."""
        if count > self.size - self._at:
            raise ValueError(f"{count} bytes should follow byte {self._at}, and it has {self.size}")

    def number(self, form: str) -> int:
        return int(struct.unpack(f"<{form}", self.bytes(struct.calcsize(f"<{form}")))[0])

    @property
    def size(self) -> int:
        return len(self._data)


def _walk(at: _Cursor) -> bool:
    """Whether the file is of the other byte order. Raises ValueError for what does not fit."""
    if at.bytes(len(_MAGIC)) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = at.number("I")
    if version and not version & 0xFFFF:
        return True
    if version not in _VERSIONS:
        raise ValueError(f"its version is {version}; {_VERSIONS} are read")
    tensors, fields = at.number("Q"), at.number("Q")
    at.require(fields * _LEAST_FIELD + tensors * _LEAST_TENSOR)
    for _ in range(fields):
        at.skip(at.number("Q"))
        _skip_value(at, at.number("I"), 0)
    for _ in range(tensors):
        _skip_tensor(at)
    return False


def _skip_value(at: _Cursor, kind: int, depth: int) -> None:
    if kind in _WIDTHS:
        at.skip(_WIDTHS[kind])
    elif kind == _TEXT:
        at.skip(at.number("Q"))
    elif kind == _LIST and depth < _DEEPEST:
        kind, count = at.number("I"), at.number("Q")
        if kind in _WIDTHS:
            at.skip(count * _WIDTHS[kind])
            return
        at.require(count * 8)  # the length of each
        for _ in range(count):
            _skip_value(at, kind, depth + 1)
    else:
        raise ValueError(f"a field is of the unknown type {kind}, or lists are too deep")


def _skip_tensor(at: _Cursor) -> None:
    name = at.bytes(at.number("Q")).decode("utf-8", "replace")
    dimensions = at.number("I")
    if not 0 < dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f"{name[:80]} has {dimensions} dimensions")
    shape = [at.number("Q") for _ in range(dimensions)]
    if not 0 < prod(shape) <= at.size * _MOST_PER_BYTE:
        raise ValueError(f"{name[:80]} is of shape {shape}")
    at.skip(4 + 8)  # its form, and where it lies
