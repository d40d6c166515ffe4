"""The tensors of a Hugging Face folder as lazy weights, under the names that the files give them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from moec.errors import MoecError
from moec.files.inside import leads_outside, stays_inside
from moec.files.regular import file_hash, read_bytes
from moec.weights.lazy import Weight, from_file, from_tensor

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds.

    Attributes:
        folder: where.
        files: names of the files that were read, relative to `folder`.
        weights: name -> lazy weight, in its stored dtype; decoded where the checkpoint is quantized.
        stored_bytes: of such a one in its files; None where weights are what is stored.
    """

    folder: Path
    files: tuple[str, ...]
    weights: dict[str, Weight]
    stored_bytes: int | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all weights as stored."""
        return sum(w.size_bytes for w in self.weights.values()) if self.stored_bytes is None else self.stored_bytes

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that was read, and of config.json, by name. Reads them whole."""
        return {name: file_hash(self.folder / name) for name in ("config.json", *self.files)}


def read_checkpoint(folder: Path, allow_pickle: bool = False) -> Checkpoint:
    """Find the weights of a folder: one safetensors file, or shards with an index, or (only when allowed) pickles.

    Only headers are read. Spec: https://huggingface.co/docs/safetensors.

    Raises:
        MoecError: M205 when a file is missing or broken, or an index disagrees with its shards; M209 for a pickle
            without permission.
    """
    for name, pickled in ((SAFETENSORS, False), (PICKLE, True)):
        files, promised = _files(folder, name)
        if not files:
            continue
        if pickled and not allow_pickle:
            raise MoecError(
                "M209",
                f"the weights are a pickle, {files[0]}, which can run code when it is loaded",
                str(folder / files[0]),
                "convert it to safetensors, or pass --allow-pickle (moec then loads it with weights_only=True)",
            )
        for file in files:
            _require_file(folder, file)
        weights = {
            k: w for file in files for k, w in (_read_pickle if pickled else _read_safetensors)(folder / file).items()
        }
        _check_promise(folder, promised, weights)
        return Checkpoint(folder, files, weights)
    if (folder / "moec.json").is_file():
        fix = "compile the model that the engine was made from; moec verify, run and bench take the engine"
        raise MoecError("M205", "this is an engine of moec's, no model", str(folder), fix)
    raise MoecError(
        "M205",
        "the folder holds no weights",
        str(folder / SAFETENSORS),
        f"put {SAFETENSORS} (or shards and their index) there",
    )


def _files(folder: Path, name: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The files of this kind that the folder has, and which weight its index promises in which of them."""
    if (folder / name).exists():
        return (name,), {}
    index = folder / f"{name}.index.json"
    if not index.exists():
        return (), {}
    try:
        promised = msgspec.json.decode(read_bytes(index), type=_Index).weight_map
    except (ValueError, OSError, RecursionError) as error:
        raise MoecError("M205", f"the index is not readable: {error}", str(index), "download the file again") from error
    outside = next((file for file in promised.values() if not stays_inside(file)), None)
    if outside is not None:
        what = f"the index names {outside!r}, which is no file of its folder"
        raise MoecError("M205", what, str(index), "download the file again, or name the files without folders")
    return tuple(sorted(set(promised.values()))), promised


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _require_file(folder: Path, name: str) -> None:
    """Raise M205 for a weight file that is missing, none, or in truth somewhere else."""
    path = folder / name
    if not path.exists():
        raise MoecError("M205", "a weight file is missing", str(path), "download the file; the index names it")
    if not path.is_file():
        raise MoecError("M205", "a weight file is a folder, a pipe or a device", str(path), "put the file there")
    if leads_outside(path, folder):
        fix = f"put the file itself there, or name the folder that it lies in: {path.resolve().parent}"
        raise MoecError("M205", "a weight file is a link out of the model's folder", str(path), fix)


def _read_safetensors(path: Path) -> dict[str, Weight]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            names = list(handle.keys())
        return {name: from_file(path, name) for name in names}
    except KeyError as error:
        raise MoecError(
            "M206",
            f"{path.name} holds tensors of type {error}, which moec does not read",
            str(path),
            "store them in a float type",
        ) from error
    except Exception as error:  # safetensors' own error class, and OSError for a file that cannot be mapped
        raise MoecError(
            "M205", f"{path.name} is truncated or no safetensors file: {error}", str(path), "download the file again"
        ) from error


def _read_pickle(path: Path) -> dict[str, Weight]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MoecError(
            "M205", f"{path.name} cannot be unpickled safely: {reason}", str(path), "convert it to safetensors"
        ) from error
    return {name: from_tensor(value, f"{path.name}:{name}") for name, value in state.items()}


def _check_promise(folder: Path, promised: dict[str, str], weights: dict[str, Weight]) -> None:
    for name, file in promised.items():
        if name not in weights:
            raise MoecError(
                "M205",
                f"{file} lacks the weight {name!r}, which the index promises",
                str(folder / file),
                "download the file again",
            )
