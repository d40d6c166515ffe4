"""Hooks that watch a pipeline: they print, dump, time or record what it does to a program."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from moec.errors import MoecError
from moec.pipeline.passes import Pass
from moec.pipeline.pipeline import Hook
from moec.program.program import Program
from moec.progress import Progress


class PrintHook(Hook):
    """Prints the program after every pass, or after the passes that are named."""

    def __init__(self, only: Sequence[str] = (), file: IO[str] | None = None) -> None:
        self._only, self._file = set(only), file

    def after(self, step: int, item: Pass, program: Program, rewrites: int, seconds: float) -> None:
        if not self._only or item.name in self._only:
            print(f"# after {item}: {rewrites} rewrites\n{program.text()}", file=self._file or sys.stdout)


class DumpHook(Hook):
    """Writes `000_capture.py`, `001_find_moe.py`, … into a folder: the program as it came and after each pass, then
    `003_export_to_onnx.txt`, … after each step of the backend's lowering, to be compared with diff.

    One hook may watch several pipelines in a row; the numbers go on. Raises M210 when the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def before(self, step: int, item: Pass, program: Program) -> None:
        if not self._count:
            self._write("capture", "py", program.text())

    def after(self, step: int, item: Pass, program: Program, rewrites: int, seconds: float) -> None:
        self._write(item.name, "py", program.text())

    def lowered(self, name: str, text: Callable[[], str]) -> None:
        self._write(name, "txt", text())

    def _write(self, name: str, kind: str, text: str) -> None:
        path = self._folder / f"{self._count:03d}_{re.sub(r'[^a-z0-9]', '_', name.lower())}.{kind}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise MoecError(
                "M210", f"the dump cannot be written: {error.strerror}", str(path), "choose another --dump folder"
            ) from error
        self._count += 1


class TimeHook(Hook):
    """Collects `(pass, milliseconds)` of every pass in `times`."""

    def __init__(self) -> None:
        self.times: list[tuple[str, float]] = []

    def after(self, step: int, item: Pass, program: Program, rewrites: int, seconds: float) -> None:
        self.times.append((str(item), seconds * 1e3))


class RecordHook(Hook):
    """Records the program as it came and after each pass in `programs`, for `moec.proof.bisection`. They share their
    weights, so this is cheap."""

    def __init__(self) -> None:
        self.programs: list[tuple[str, Program]] = []

    def before(self, step: int, item: Pass, program: Program) -> None:
        if not self.programs:
            self.programs.append(("capture", program.clone()))

    def after(self, step: int, item: Pass, program: Program, rewrites: int, seconds: float) -> None:
        self.programs.append((str(item), program.clone()))


class LoweringProgress(Progress):
    """The progress of a build that passes on to another, and shows hooks each step of the lowering."""

    def __init__(self, progress: Progress, hooks: Sequence[Hook]) -> None:
        self.stage, self.advance, self.done = progress.stage, progress.advance, progress.done  # type: ignore[method-assign]
        self.detail = progress.detail  # type: ignore[method-assign]
        self._progress, self._hooks = progress, hooks

    def step(self, name: str, text: Callable[[], str]) -> None:
        self._progress.step(name, text)
        for hook in self._hooks:
            hook.lowered(name, text)
