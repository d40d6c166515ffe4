"""The versions that made an engine."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

from moec.version import __version__

_PACKAGES = ("torch", "transformers", "safetensors", "numpy")


def environment(backend: Mapping[str, str] | None = None) -> dict[str, str]:
    """Versions of everything that computes or writes, and the kind of processor; `backend` adds a backend's own
    packages."""
    found = {
        "moec": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, **(backend or {})}
