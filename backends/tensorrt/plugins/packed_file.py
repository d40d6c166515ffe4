"""Packed weights in a file of their own, as moec's kernels read them.

The ONNX file has them too, in TensorRT's packing, for the standard operators that prove the graph; a network has no way
from one to the other. Here they lie as `moec::dequantize` defines them, and become constants of the network: codes as
32-bit integers, a type that plugins take in every version of the library and that no pass of it rounds. To a kernel
they are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moec.errors import MoecError

if TYPE_CHECKING:
    from moec.weights.weight import PackedWeight

FILE = "model.packed"
_ALIGNMENT_BYTES = 256
_ITEM_BYTES = {"int32": 4, "float32": 4, "float16": 2, "bfloat16": 2}


def write(folder: Path, blocks: Sequence[Mapping[str, PackedWeight]]) -> list[dict[str, Any]]:
    """Write the packed matrices of blocks, `w_in` and `w_out`, one in memory at a time; no file where there are none.

    Returns:
        For each block a record a tensor: `w_in` has the codes, `s_in` the scales, and so on; `offset` in bytes,
            `shape`, `dtype`.

    Raises:
        MoecError: M208 for weights with zero points, or whose rows do not fill 32-bit integers; M210 when the file
            cannot be written.
    """
    if not any(blocks):
        return [{} for _ in blocks]
    try:
        with (folder / FILE).open("wb") as file:
            return [
                {name: record for role, weight in block.items() for name, record in _write(file, role, weight)}
                for block in blocks
            ]
    except OSError as failure:
        raise MoecError(
            "M210",
            f"the engine cannot be written: {failure.strerror or failure}",
            str(folder),
            "free space there, or choose another --out",
        ) from failure


def _write(file: Any, role: str, weight: PackedWeight) -> list[tuple[str, dict[str, Any]]]:
    import torch

    *rows, width = weight.packed.shape
    if weight.zero is not None or weight.packed.dtype != torch.uint8 or width % 4:
        raise MoecError(
            "M208",
            "moec's kernels get packed integers without zero points, in rows of whole 32-bit words",
            role,
            "take lowering=dense or gathered",
        )
    dtype, found = str(weight.scale.dtype).removeprefix("torch."), []
    parts = (
        (role, weight.packed, "int32", [*rows, width // 4]),
        (role.replace("w", "s"), weight.scale, dtype, list(weight.scale.shape)),
    )
    for name, lazy, kind, shape in parts:
        file.write(bytes(-file.tell() % _ALIGNMENT_BYTES))
        found.append((name, {"offset": file.tell(), "shape": shape, "dtype": kind}))
        file.write(lazy.load().contiguous().view(torch.uint8).numpy().data)
    return found


def constants(
    trt: Any, network: Any, records: Mapping[str, Mapping[str, Any]], folder: Path
) -> tuple[dict[str, Any], list[Any]]:
    """Put what `write` wrote of one block into a network.

    Returns:
        Tensors by name, and what must outlive the build: the library reads the file's pages when it builds.

    Raises:
        MoecError: M208 when the library takes no such constant.
    """
    import numpy as np

    tensors, mapped = dict[str, Any](), list[Any]()
    for name, record in records.items():
        count = math.prod(record["shape"])
        pages = np.memmap(folder / FILE, np.uint8, "r", record["offset"], (count * _ITEM_BYTES[record["dtype"]],))
        layer = network.add_constant(
            tuple(record["shape"]), trt.Weights(getattr(trt, record["dtype"]), pages.ctypes.data, count)
        )
        if layer is None:
            raise MoecError(
                "M208", f"the library takes no constant of {record['dtype']}", name, "take lowering=dense or gathered"
            )
        tensors[name] = layer.get_output(0)
        mapped.append(pages)
    return tensors, mapped
