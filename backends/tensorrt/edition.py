"""The two libraries: TensorRT, which builds on the GPU that an engine is for, and TensorRT-RTX, which builds
anywhere."""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@dataclass(frozen=True)
class Edition:
    """One library.

    Attributes:
        backend: name of the target, and of the extra of moec that installs the library.
        title: as NVIDIA calls it.
        module: what is imported.
        packages: distributions that may have brought it, the usual one first.
        oldest: the first version whose interface moec knows.
        architectures: compute capabilities that it builds for, e.g. 90 for `sm90`.
        builds_on_gpu: whether building needs the GPU itself. Running always does.
    """

    backend: str
    title: str
    module: str
    packages: tuple[str, ...]
    oldest: tuple[int, int]
    architectures: tuple[int, ...]
    builds_on_gpu: bool

    @property
    def install(self) -> str:
        """The command that brings it."""
        return f"pip install 'moec[{self.backend}]'"

    def version(self) -> str | None:
        """The installed version without loading the library; None when it is not here."""
        if importlib.util.find_spec(self.module) is None:
            return None
        for package in self.packages:
            try:
                return version(package)
            except PackageNotFoundError:
                continue
        try:  # a package of the system, which pip does not know
            return str(importlib.import_module(self.module).__version__)
        except (ImportError, OSError, AttributeError):
            return None

    def knows(self, installed: str) -> bool:
        """Whether this version is new enough."""
        numbers = [int(n) for n in re.findall(r"\d+", installed)[:2]]
        return tuple(numbers) >= self.oldest

    def load(self) -> Any:
        """The library's module."""
        return importlib.import_module(self.module)


TENSORRT = Edition(
    "tensorrt",
    "TensorRT",
    "tensorrt",
    ("tensorrt", "tensorrt_cu13", "tensorrt_cu12", "tensorrt_cu13_bindings", "tensorrt_cu12_bindings"),
    (10, 16),
    (80, 86, 87, 89, 90, 100, 103, 110, 120, 121),
    builds_on_gpu=True,
)
RTX = Edition(
    "tensorrt-rtx",
    "TensorRT-RTX",
    "tensorrt_rtx",
    ("tensorrt_rtx_cu13", "tensorrt_rtx", "tensorrt_rtx_cu13_bindings"),
    (1, 7),
    (75, 80, 86, 89, 120, 121),
    builds_on_gpu=False,
)
EDITIONS = {edition.backend: edition for edition in (TENSORRT, RTX)}
