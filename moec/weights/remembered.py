"""Tensors that took long to compute, kept from one compile to the next by what they were computed from; see
`moec.files.kept`."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec import version
from moec.files import kept
from moec.weights.digest import add_tensor

Forms = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # of tensors: name, shape, dtype
_HEAD_BYTES = 1024  # at most, of what a file says of a tensor beside its numbers


def key_of(*what: Any) -> str:
    """The hash of all that computed numbers depend on: `code_key` of the processor's instructions and threads (both
    decide in which order numbers are added), and of `what`."""
    return code_key((platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()), *what)


def code_key(*what: Any) -> str:
    """The hash of what depends on code and not on the processor: moec's version and its sources, the versions of torch
    and Python, and `what`: tensors by dtype, shape and bytes, anything else by its `repr`, which has all fields of a
    data class. Text for people leaves some out."""
    code = sources_hash(Path(version.__file__).parent)
    found = hashlib.sha256(repr((version.__version__, code, torch.__version__, platform.python_version())).encode())
    for each in what:
        if isinstance(each, Tensor):
            add_tensor(found, each)
        else:
            found.update(repr(("text", each)).encode())
    return found.hexdigest()


def forms(tensors: Mapping[str, Tensor]) -> Forms:
    """The shapes and dtypes of tensors: what is recalled has those that are expected, or is made anew."""
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


def remembered(key: str, expected: Forms, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that are kept under a key, if they have the expected shapes and dtypes, else those that `make` makes,
    which then are kept."""
    found = recall(key)
    if found is None or forms(found) != expected:
        found = dict(make())
        keep(key, found)
    return found


def recall(key: str) -> dict[str, Tensor] | None:
    """The tensors that are kept under a key; None where there are none that can be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = kept.read(key)
    try:
        return None if content is None else load(content)
    except SafetensorError:  # whole, and yet no tensors: not ours
        return None


def keep(key: str, tensors: Mapping[str, Tensor]) -> bool:
    """Keep tensors under a key, where there is a weight cache; whether they are kept now."""
    from safetensors.torch import save

    if not fits(tensors.values()):
        return False
    return kept.write(key, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def fits(tensors: Iterable[Tensor]) -> bool:
    """Whether the weight cache may become as large as these together, told before any is written."""
    total = sum(_HEAD_BYTES + tensor.numel() * tensor.itemsize for tensor in tensors)
    return kept.folder() is not None and total <= kept.limit_bytes()


@cache
def sources_hash(package: Path) -> str:
    """Of a package's Python files with their names: 10 ms for moec's, once a process. In a checkout the version stands
    still while the code changes, and no list of modules keeps up with what a result goes through."""
    found = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        content = file.read_bytes()
        found.update(repr((file.relative_to(package).as_posix(), len(content))).encode())
        found.update(content)
    return found.hexdigest()
