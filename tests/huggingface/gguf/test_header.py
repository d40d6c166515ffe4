"""Headers that promise more than their file holds, or say it in the other byte order."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.huggingface.gguf.header import check_header
from moec.huggingface.gguf.read import read_gguf

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
MANY = struct.pack("<Q", 2**40)


def written(path: Path, **changes: object) -> Path:
    """A file of a field, a list of numbers, one of texts, and a tensor `[3, 5]`; no model."""
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama", **changes)
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_array("some.texts", ["a", "bc"])
    writer.add_tensor("a.tensor", np.zeros((5, 3), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_of_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="big-endian") as caught:
        read_gguf(written(tmp_path / "m.gguf", endianess=gguf.GGUFEndian.BIG))
    assert caught.value.code == "M206" and "gguf-convert-endian" in caught.value.fix


def at(data: bytes, name: bytes, skipped: int) -> int:
    """Where something lies so many bytes behind a name."""
    assert data.count(name) == 1
    return data.index(name) + len(name) + skipped


@pytest.mark.parametrize(
    ("name", "skipped", "bytes_"),
    [
        (b"GGUF", 4, MANY),  # tensors
        (b"GGUF", 12, MANY),  # fields
        (b"some.numbers", 8, MANY),  # entries
        (b"some.texts", 8, MANY),
        (b"some.texts", 16, MANY),  # letters of the first
        (b"some.texts", 0, struct.pack("<I", 77)),  # a type
        (b"a.tensor", 0, struct.pack("<I", 0)),  # dimensions
        (b"a.tensor", 4, struct.pack("<Q", 0)),
        (b"a.tensor", 4, MANY),
    ],
)
def test_what_does_not_fit_is_said(name: bytes, skipped: int, bytes_: bytes, tmp_path: Path) -> None:
    file = written(tmp_path / "m.gguf")
    check_header(file)
    data = bytearray(file.read_bytes())
    where = at(bytes(data), name, skipped)
    data[where : where + len(bytes_)] = bytes_
    file.write_bytes(data)
    with pytest.raises(MoecError) as caught:
        read_gguf(file)
    assert caught.value.code == "M204" and "again" in caught.value.fix
