"""Engines with a wrong expert that only a comparison of numbers can find out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

SPOILED = "node_moe_1.5.out.weight"  # the second layer's expert 5, in the grouped lowering


def half_more(values: np.ndarray) -> np.ndarray:
    """Every number 1.5 times as large."""
    return values * 1.5


def shuffle(values: np.ndarray) -> np.ndarray:
    """The same numbers in another order."""
    return np.random.default_rng(0).permutation(values.ravel()).reshape(values.shape)


def one_step_up(codes: np.ndarray) -> np.ndarray:
    """Every unsigned code one step larger, but the largest."""
    return np.minimum(codes, np.iinfo(codes.dtype).max - 1) + 1


def spoil(
    engine: Path, copy: Path, name: str = SPOILED, change: Callable[[np.ndarray], np.ndarray] = half_more
) -> Path:
    """A copy of an engine with one weight changed, and its manifest made to agree with the file."""
    shutil.copytree(engine, copy)
    tensor = ir.load(copy / "model.onnx").graph.initializers[name].const_value
    assert isinstance(tensor, ir.ExternalTensor) and tensor.offset is not None
    dtype = tensor.dtype.numpy()
    data = np.memmap(copy / "model.onnx.data", dtype, "r+", tensor.offset, tuple(tensor.shape.numpy()))
    data[...] = change(data)
    data.flush()
    manifest = json.loads((copy / "moec.json").read_text())
    artefact = next(a for a in manifest["artefacts"] if a["name"] == "model.onnx.data")
    artefact["sha256"] = hashlib.sha256((copy / "model.onnx.data").read_bytes()).hexdigest()
    (copy / "moec.json").write_text(json.dumps(manifest))
    return copy


def edit(engine: Path, copy: Path, change: Callable[[ir.Model], None]) -> Path:
    """A copy of an engine with its graph changed; its manifest, where it has one, is made to agree with the files."""
    shutil.copytree(engine, copy)
    model = ir.external_data.load_to_model(ir.load(copy / "model.onnx"))  # no links are read
    change(model)
    ir.save(model, copy / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=1024)
    if (copy / "moec.json").exists():
        agree(copy)
    return copy


def agree(engine: Path) -> None:
    """Make the hashes and sizes of a manifest those of the files."""
    manifest = json.loads((engine / "moec.json").read_text())
    for artefact in manifest["artefacts"]:
        data = (engine / artefact["name"]).read_bytes()
        artefact["sha256"], artefact["size_bytes"] = hashlib.sha256(data).hexdigest(), len(data)
    (engine / "moec.json").write_text(json.dumps(manifest))


def set_number(name: str, at: tuple[int, ...], by: float) -> Callable[[ir.Model], None]:
    """The edit that multiplies one element of an initializer."""

    def change(model: ir.Model) -> None:
        value = model.graph.initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array[at] *= by
        value.const_value = ir.tensor(array, name=name)

    return change


def set_attribute(op: str, name: str, by: float) -> Callable[[ir.Model], None]:
    """The edit that multiplies a number of the first operator of a kind."""

    def change(model: ir.Model) -> None:
        node = next(node for node in model.graph.all_nodes() if node.op_type == op)
        node.attributes[name] = ir.AttrFloat32(name, node.attributes[name].as_float() * by)

    return change


def set_constant(old: np.ndarray, new: np.ndarray) -> Callable[[ir.Model], None]:
    """Put another array in the place of the one constant that equals `old`."""

    def change(model: ir.Model) -> None:
        graph = model.graph
        (value,) = [v for v in graph.initializers.values() if _equal(v.const_value, old)]
        value.const_value = ir.tensor(new.astype(old.dtype), name=value.name)

    return change


def _equal(tensor: ir.TensorProtocol | None, array: np.ndarray) -> bool:
    found = tensor.numpy() if tensor is not None and tensor.size == array.size else None
    return found is not None and found.dtype == array.dtype and np.array_equal(found, array)


def halve_logits_from(least: int, source: str, dim: int) -> Callable[[ir.Model], None]:
    """Halve the first output in calls in which a dimension of an input has this size or more."""

    def change(model: ir.Model) -> None:
        graph = model.graph
        given = next(i for i in graph.inputs if i.name == source)
        old = graph.outputs[0]
        size = ir.node("Shape", [given], {"start": dim, "end": dim + 1})
        limit, half, one = (ir.node("Constant", [], {"value": ir.tensor(value)}) for value in (
            np.array([least]), np.array([0.5], np.float32), np.array([1.0], np.float32)))  # fmt: skip
        many = ir.node("GreaterOrEqual", [size.outputs[0], limit.outputs[0]])
        factor = ir.node("Where", [many.outputs[0], half.outputs[0], one.outputs[0]])
        halved = ir.node("Mul", [old, factor.outputs[0]])
        new, name = halved.outputs[0], old.name
        old.name, new.name = f"{name}.whole", name
        new.type, new.shape = old.type, old.shape
        graph.extend([size, limit, half, one, many, factor, halved])
        graph.outputs[0] = new

    return change
