"""Engines that travel without their weights: the graph, and of each weight its dtype and spread.

A small engine's graph packs to some kilobytes, its weights to megabytes. Where an engine is compared with itself on
another device any weights will do, so that on the other machine they are drawn anew: by name, the same for every run,
with the mean, deviation and ends of those that were there. Indices, shapes and small tensors stay as they are.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MODEL, DATA, KEPT, FACTS = "model.onnx", "model.onnx.data", "kept.bin", "engine.json"
SMALL_BYTES = 4096
FLOATS = {1: np.float32, 10: np.float16, 11: np.float64}  # onnx.TensorProto's numbers
BYTES = 2  # uint8


@dataclass(frozen=True)
class Facts:
    """What is known of an engine where it was made.

    Attributes:
        name: of the model and its form, `qwen3_moe/int4`.
        target: as `moec.Target` reads it, with the device `cuda`.
        expected: what the stand-in for CUDA's libraries counted of a step: launches, copies, bytes, kernel names.
        size: bytes of the weights' file. drawn: offset, length, ONNX's dtype, mean, deviation, low, high, name.
        kept: offset and length of what lies in `kept.bin`, one after the other.
    """

    name: str
    target: str
    expected: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    drawn: list[list[Any]] = field(default_factory=list)
    kept: list[list[int]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Facts:
        return cls(**json.loads((folder / FACTS).read_text()))

    def write(self, folder: Path) -> None:
        (folder / FACTS).write_text(json.dumps(asdict(self)))


def graphs_of(graph: Any) -> Iterator[Any]:
    """A graph and those in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from graphs_of(inner)


def external(folder: Path) -> dict[tuple[int, int], Any]:
    """(offset, length) -> tensor of all that lies in the weights' file, each place once."""
    import onnx

    model = onnx.load(str(folder / MODEL), load_external_data=False)
    found = {}
    for tensor in (t for graph in graphs_of(model.graph) for t in graph.initializer):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place["location"] != DATA:
                raise ValueError(f"weights in {place['location']}, not in {DATA}")
            found[int(place.get("offset", 0)), int(place["length"])] = tensor
    return found


def strip(folder: Path, facts: Facts) -> Facts:
    """Take the weights' file away, and write down what is needed to draw another; returns all facts."""
    data = np.memmap(folder / DATA, np.uint8, "r")
    drawn, kept, bytes_kept = [], [], bytearray()
    for (offset, length), tensor in sorted(external(folder).items()):
        part = data[offset : offset + length]
        if length > SMALL_BYTES and tensor.data_type in FLOATS:
            values = part.view(FLOATS[tensor.data_type]).astype(np.float64)
            spread = [float(f(values)) for f in (np.mean, np.std, np.min, np.max)]
            drawn.append([offset, length, tensor.data_type, *spread, tensor.name])
        elif length > SMALL_BYTES and tensor.data_type == BYTES:
            drawn.append([offset, length, BYTES, 0, 0, 0, 255, tensor.name])
        else:
            kept.append([offset, length])
            bytes_kept += part.tobytes()
    whole = Facts(facts.name, facts.target, facts.expected, len(data), drawn, kept)
    del data
    (folder / DATA).unlink()
    (folder / KEPT).write_bytes(bytes_kept)
    whole.write(folder)
    return whole


def fill(folder: Path) -> Facts:
    """Draw the weights of an engine that has none; the same each time."""
    facts, at = Facts.read(folder), 0
    data = np.memmap(folder / DATA, np.uint8, "w+", shape=(facts.size,))
    for offset, length, kind, mean, deviation, low, high, name in facts.drawn:
        random = np.random.default_rng(zlib.crc32(name.encode()))
        if kind == BYTES:
            data[offset : offset + length] = random.integers(0, 256, length, np.uint8)
            continue
        dtype = np.dtype(FLOATS[kind])
        values = random.standard_normal(length // dtype.itemsize, np.float32) * deviation + mean
        data[offset : offset + length] = values.clip(low, high).astype(dtype).view(np.uint8)
    kept = (folder / KEPT).read_bytes()
    for offset, length in facts.kept:
        data[offset : offset + length] = np.frombuffer(kept, np.uint8, length, at)
        at += length
    data.flush()
    return facts


def pack(folders: list[Path], out: Path) -> Path:
    """All stripped engines as one archive."""
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out / "engines.tar.xz", "w:xz", preset=9) as archive:
        for folder in folders:
            archive.add(folder, folder.name)
    return out / "engines.tar.xz"


def unpack(bundles: list[Path], where: Path) -> list[Path]:
    """The engines of all bundles, filled, in the order of their names; empty where none was brought."""
    for file in (bundle / "engines.tar.xz" for bundle in bundles):
        if file.is_file():
            with tarfile.open(file) as archive:
                archive.extractall(where, filter="data")
    return sorted(path.parent for path in where.glob(f"*/{FACTS}"))
