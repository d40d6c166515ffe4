"""Models in memory: a manifest cannot say where they are, so it keeps what their weights are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from torch import Tensor

from moec.weights.digest import add_tensor

IN_MEMORY = "weights in memory"  # stands in the place of a file's name among a source's hashes


def hash_of(tensors: Iterable[tuple[str, Iterable[Tensor]]]) -> str:
    """SHA-256 of tensors' names, dtypes and bytes, in the order of their names; each in blocks of rows."""
    found = hashlib.sha256()
    for name, blocks in sorted(tensors, key=lambda pair: pair[0]):
        found.update(name.encode())
        for block in blocks:
            add_tensor(found, block)
    return found.hexdigest()


def state_hash(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The hashes of a source whose weights are a module's `state_dict`."""
    return {IN_MEMORY: hash_of((name, [value]) for name, value in state.items() if isinstance(value, Tensor))}


def is_in_memory(hashes: Mapping[str, str]) -> bool:
    """Whether these are the hashes of a model that was made in memory, and can be opened only by who holds it."""
    return IN_MEMORY in hashes
