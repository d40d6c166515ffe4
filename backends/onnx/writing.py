"""An ONNX model as files: the graph, and beside it the weights, one block in memory at a time."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from moec.errors import MoecError
from moec.progress import Progress

EXTERNAL_BYTES = 1024  # initializers from this size on go into the file beside


def write_model(model: ir.Model, path: Path, progress: Progress | None = None) -> None:
    """Write `path` and `<path>.data`. Raises M210 when the disk does not take them."""
    progress = progress or Progress()
    total: int = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    written = lambda tensor, info: progress.advance(info.offset + tensor.nbytes, total, "B", tensor.name or "")  # noqa: E731
    try:
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=EXTERNAL_BYTES, callback=written)
    except OSError as error:
        raise MoecError(
            "M210",
            f"the engine cannot be written: {error.strerror or error}",
            str(path.parent),
            "free space there, or choose another --out",
        ) from error
