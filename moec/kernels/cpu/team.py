"""PyTorch's own threads on a CPU, which the library works on; and why it may have to work on one alone.

PyTorch's are a team of OpenMP threads. A team does not outlive a fork: in the child it hangs whoever waits for it, and
PyTorch's own operators hang there too, unless `torch.set_num_threads(1)` comes first. There the library works on the
calling thread.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from functools import lru_cache
from pathlib import Path

import torch

_FOUND = os.getpid()  # the process that this module was imported in; in its children the team is gone


def parallel() -> int | None:
    """Where `GOMP_parallel` of PyTorch's own OpenMP library lies; None where its threads cannot be used."""
    return _of_openmp() if os.getpid() == _FOUND else None


def why_alone() -> str:
    """Why the kernels work on one thread of the several that PyTorch has; empty where they do not."""
    if torch.get_num_threads() == 1 or parallel() is not None:
        return ""
    if os.getpid() != _FOUND:
        return "this process was forked, and PyTorch's threads stayed behind"
    return "this PyTorch is not built with OpenMP"


def warn_where_alone() -> None:
    """A RuntimeWarning, which Python shows once, where the kernels work on one thread of several."""
    if why := why_alone():
        fix = "start processes by spawn" if os.getpid() != _FOUND else "use PyTorch's own wheels"
        warnings.warn(f"moec's kernels for CPUs work on one thread: {why}; {fix}", RuntimeWarning, stacklevel=3)


@lru_cache(None)
def _of_openmp() -> int | None:
    core = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.cast(ctypes.CDLL(str(core)).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
