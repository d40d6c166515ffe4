"""Write lazy weights as safetensors shards, one block of rows in memory at a time. Spec:
https://huggingface.co/docs/safetensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from moec.files.sink import FolderSink, Sink
from moec.progress import Progress
from moec.weights.lazy import Weight

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
}


def write_shards(
    folder: Path, weights: Mapping[str, Weight], max_shard_bytes: int, progress: Progress | None = None
) -> list[Path]:
    """`stream_shards` into a folder; returns the files. Raises OSError when the disk says no."""
    return [folder / name for name in stream_shards(FolderSink(folder), weights, max_shard_bytes, progress)]


def stream_shards(
    sink: Sink, weights: Mapping[str, Weight], max_shard_bytes: int, progress: Progress | None = None
) -> list[str]:
    """Write `model.safetensors`, or numbered shards and their index when the weights need more than `max_shard_bytes`;
    returns the files' names.

    A single weight that is larger than `max_shard_bytes` gets a shard of its own. Raises OSError when the sink does.
    """
    shards = _partition(weights, max_shard_bytes)
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    total, done = sum(weight.size_bytes for weight in weights.values()), 0
    for name, shard in zip(names, shards, strict=True):
        with sink.create(name) as file:
            for key, size in _write(file, shard):
                done += size
                (progress or Progress()).advance(done, total, "B", key)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
        }
        names.append("model.safetensors.index.json")
        with sink.create(names[-1]) as file:
            file.write((json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
    return names


def _partition(weights: Mapping[str, Weight], limit: int) -> list[dict[str, Weight]]:
    shards: list[dict[str, Weight]] = [{}]
    used = 0
    for name, weight in weights.items():
        if used + weight.size_bytes > limit and shards[-1]:
            shards.append({})
            used = 0
        shards[-1][name] = weight
        used += weight.size_bytes
    return shards


def _write(file: BinaryIO, weights: Mapping[str, Weight]) -> Iterator[tuple[str, int]]:
    """Write one file; after each block, whose it was and how many bytes it had."""
    ordered = sorted(
        weights.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])
    )  # wide types first, so that all are aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, weight in ordered:
        header[name] = {
            "dtype": _DTYPES[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [at, at + weight.size_bytes],
        }
        at += weight.size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name, weight in ordered:
        for block in weight.blocks() if weight.size_bytes else ():
            yield name, file.write(block.detach().contiguous().flatten().view(torch.uint8).numpy().data)
