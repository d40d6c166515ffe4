"""Memory that was written in small pages lies on huge ones afterwards, at the same addresses with the same contents."""

from __future__ import annotations

import ctypes
import mmap
import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from moec.backends.onnxruntime.session.huge_pages import (
    ENABLED,
    HUGE,
    anonymous_memory,
    collapse,
    collapse_beside,
    without,
)


def can_collapse() -> bool:
    version = [int(n) for n in platform.release().split(".")[:2] if n.isdigit()]
    return (
        platform.machine() == "x86_64"
        and ENABLED.exists()
        and "[never]" not in ENABLED.read_text()
        and version >= [6, 1]
    )


needs_huge_pages = pytest.mark.skipif(not can_collapse(), reason="no huge pages here, or Linux is older than 6.1")


def huge_bytes(memory: list[range]) -> int:
    """Of all mappings that these addresses lie in."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(maxsplit=1)[0]
        if "-" in head:
            start, end = (int(n, 16) for n in head.split("-"))
            inside = any(p.start < end and start < p.stop for p in memory)
        elif inside and head == "AnonHugePages:":
            found += int(line.split()[1]) * 1024
    return found


def test_parts_that_are_new() -> None:
    assert without([range(10), range(20, 30)], [range(5, 22), range(28, 29)]) == [
        range(5),
        range(22, 28),
        range(29, 30),
    ]
    assert without([range(10)], []) == [range(10)] and without([range(3, 5)], [range(10)]) == []


@needs_huge_pages
def test_written_memory_is_moved_and_keeps_its_contents() -> None:
    before = anonymous_memory()
    mapped = mmap.mmap(-1, 6 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values = np.frombuffer(mapped, np.uint8)
    values[:] = np.arange(values.size) % 251
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    mine = [p for p in without(anonymous_memory(), before) if p.start <= address < p.stop]
    assert mine and huge_bytes(mine) == 0  # the mutant: without asking there are none
    collapse(mine)
    assert huge_bytes(mine) >= 4 * HUGE and np.array_equal(values, np.arange(values.size) % 251)


@needs_huge_pages
def test_the_weights_of_a_session_are_found_and_moved(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal(
        (2048, 6144), np.float32
    )  # 48 MiB: malloc keeps nothing of this size from before
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size])
        for name, size in (("x", 2048), ("y", 6144))
    )
    graph = onnx.helper.make_graph([node], "product", [x], [y], [onnx.numpy_helper.from_array(weight, "w")])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "model.onnx",
    )
    before = anonymous_memory()
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    new = without(anonymous_memory(), before)
    feeds = {"x": np.ones((1, 2048), np.float32)}
    want, huge_before = session.run(None, feeds)[0], huge_bytes(new)
    collapse_beside(new).join()
    assert huge_bytes(new) - huge_before >= 24 << 20 and np.array_equal(session.run(None, feeds)[0], want)
