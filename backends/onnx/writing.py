"""An ONNX model as files: the graph, and beside it the weights, one block in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from moec.backends.onnx.tensors import WeightTensor, as_bytes
from moec.errors import MoecError
from moec.files.sink import FolderSink, Sink
from moec.progress import Progress

EXTERNAL_BYTES = 1024  # initializers of more than this go into the file beside
ALIGNED = 64  # bytes; each starts at a multiple: runtimes read them where the file is mapped, by vectors of up to 64


def write_model(model: ir.Model, path: Path, progress: Progress | None = None) -> None:
    """Write `path` and `<path>.data`. Raises M210 when the disk does not take them."""
    try:
        stream_model(model, path.name, FolderSink(path.parent), progress)
    except OSError as error:
        raise MoecError(
            "M210",
            f"the engine cannot be written: {error.strerror or error}",
            str(path.parent),
            "free space there, or choose another --out",
        ) from error


def stream_model(model: ir.Model, name: str, sink: Sink, progress: Progress | None = None) -> None:
    """Write a model into a sink: first `<name>.data`, the weights one after another, each from a multiple of
    `ALIGNED` bytes on, with zeros between; then `name`, which says where each lies. The model itself is left as it is.

    Spec: https://onnx.ai/onnx/repo-docs/ExternalData.html. Raises OSError when the sink does.
    """
    progress = progress or Progress()
    values = [
        value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes > EXTERNAL_BYTES
    ]
    tensors = [value.const_value for value in values if value.const_value is not None]
    *starts, _ = accumulate((_aligned(tensor.nbytes) for tensor in tensors), initial=0)
    total = starts[-1] + tensors[-1].nbytes if tensors else 0
    data, end = f"{name}.data", 0
    with sink.create(data) as file:
        for tensor, start in zip(tensors, starts, strict=True):
            file.write(bytes(start - end))
            for done in _write(tensor, file):
                progress.advance(start + done, total, "B", tensor.name or "")
            end = start + tensor.nbytes
    try:
        for value, tensor, start in zip(values, tensors, starts, strict=True):
            value.const_value = _placed(tensor, data, start)
        graph = ir.to_proto(model).SerializeToString()
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor
    with sink.create(name) as file:
        file.write(graph)


def _aligned(size: int) -> int:
    """The first multiple of `ALIGNED` that is no less."""
    return -(-size // ALIGNED) * ALIGNED


def _write(tensor: ir.TensorProtocol, file: BinaryIO) -> Iterator[int]:
    """Write a tensor's bytes; after each block, how many there are."""
    if not isinstance(tensor, WeightTensor):
        yield file.write(tensor.tobytes())
        return
    done = 0
    for block in tensor.weight.blocks():
        done += file.write(as_bytes(block))
        yield done


def _placed(tensor: ir.TensorProtocol, data: str, start: int) -> ir.ExternalTensor:
    """What the graph says of a tensor in the file beside."""
    shape, name = ir.Shape(tensor.shape), tensor.name or ""  # type: ignore[arg-type]
    return ir.ExternalTensor(data, start, tensor.nbytes, tensor.dtype, shape=shape, name=name, base_dir="")
