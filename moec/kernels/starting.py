"""Starting a kernel, or writing down that it would be started, which needs neither a GPU nor tensors with values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """One start of a kernel: Triton's function, its grid, its arguments by name, and Triton's own options (num_warps,
    num_stages)."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]


@dataclass(frozen=True)
class Recording:
    """What would have been started on a device of compute capability `sm` (90 for 9.0)."""

    sm: int
    launches: list[Launch] = field(default_factory=list)


_recording: ContextVar[Recording | None] = ContextVar("moec_kernels_recording", default=None)


@contextmanager
def recording(sm: int) -> Iterator[Recording]:
    """Inside, kernels are written down instead of started, and tensors may be on the meta device."""
    found = Recording(sm)
    token = _recording.set(found)
    try:
        yield found
    finally:
        _recording.reset(token)


def is_recording() -> bool:
    """Whether `recording` is active."""
    return _recording.get() is not None


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def start(kernel: Any, grid: tuple[int, ...], *arguments: Any, **named: Any) -> None:
    """Start a kernel on the current stream."""
    found = _recording.get()
    if found is None:
        kernel[grid](*arguments, **named)
        return
    given = {**dict(zip(kernel.arg_names, arguments, strict=False)), **named}
    values = {name: given.pop(name) for name in kernel.arg_names}
    found.launches.append(Launch(kernel, grid, values, given))


def capability(device: torch.device) -> int:
    """Compute capability as `10 * major + minor`; where there is no GPU that of the recording, or the least."""
    found = _recording.get()
    return found.sm if found else _capability(device)


@lru_cache(None)
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
    return 10 * major + minor


def multiprocessors(device: torch.device) -> int:
    """How many the device has. Where there is no GPU: 2, so that in the interpreter programs take turns; compiled code
    doesn't depend on it."""
    return 2 if is_recording() or device.type != "cuda" else _multiprocessors(device)


@lru_cache(None)
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Makes x's device the current one, where kernels start."""
    return torch.cuda.device(x.device) if x.is_cuda and not is_recording() else nullcontext()


def wide(n: int) -> int:
    """The least power of two that is not below n: the sizes that Triton's ranges have."""
    return 1 << max(n - 1, 0).bit_length()
