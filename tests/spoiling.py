"""Engines with a wrong expert that only a comparison of numbers can find out."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir

SPOILED = "node_moe_1.5.out.weight"  # the second layer's expert 5, in the grouped lowering


def spoil(engine: Path, copy: Path, name: str = SPOILED) -> Path:
    """A copy of an engine with one weight multiplied, and its manifest made to agree with the file."""
    shutil.copytree(engine, copy)
    tensor = ir.load(copy / "model.onnx").graph.initializers[name].const_value
    assert isinstance(tensor, ir.ExternalTensor) and tensor.offset is not None
    data = np.memmap(copy / "model.onnx.data", np.float32, "r+", tensor.offset, tuple(tensor.shape.numpy()))
    data *= 1.5
    data.flush()
    manifest = json.loads((copy / "moec.json").read_text())
    artefact = next(a for a in manifest["artefacts"] if a["name"] == "model.onnx.data")
    artefact["sha256"] = hashlib.sha256((copy / "model.onnx.data").read_bytes()).hexdigest()
    (copy / "moec.json").write_text(json.dumps(manifest))
    return copy
