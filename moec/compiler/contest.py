"""Engines out of their folders, timed beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from moec.compiler.engine_folder import open_recorded
from moec.compiler.keep_speed import keep_speed
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.generation import is_decoder
from moec.progress import Progress
from moec.report.artefacts import MANIFEST
from moec.report.report import Report
from moec.targets.backend import find_backend
from moec.targets.target import Target
from moec.timing.benchmark import Benchmark
from moec.timing.contenders import Contender, loaded, row_names
from moec.timing.decoders import bench_decoders
from moec.timing.engines import bench_engines


class Contest:
    """Engines that are to be timed, loaded one after another so that the memory of each is seen.

    Args:
        engines: folders, or engines that are loaded. load: makes an engine of a folder.
        opening: arguments of `open_source`, for the untouched model.
        eager: whether the first folder's untouched model is put beside them.

    Raises:
        MoecError: M201 where an untouched model is asked for and no folder names one.
    """

    def __init__(
        self,
        engines: Sequence[str | Path | Engine],
        load: Callable[[Path], Engine],
        opening: Mapping[str, Any],
        eager: bool,
    ) -> None:
        names = row_names([e.name if isinstance(e, Engine) else e for e in engines])
        named = list(zip(names, engines, strict=True))
        self._folders = {name: Path(e) for name, e in named if not isinstance(e, Engine)}
        self._versions = _runtimes(self._folders.values())  # first: their libraries count for no engine's memory
        self._rows = [
            Contender(name, e) if isinstance(e, Engine) else loaded(name, partial(load, Path(e))) for name, e in named
        ]
        if eager:
            folder = next(iter(self._folders.values()), None)
            self._rows.append(loaded("eager PyTorch", partial(_untouched, folder, opening)))

    def run(
        self,
        sizes: Mapping[str, int] | None,
        runs: int | None,
        warmup: int | None,
        max_tokens: int,
        forward: bool,
        progress: Progress | None,
    ) -> Benchmark:
        """Time them: as writers of text where all of them are, else, or where `forward` asks for it, forward."""
        if forward or not all(is_decoder(row.engine) for row in self._rows):
            number, before = 30 if runs is None else runs, 3 if warmup is None else warmup
            return bench_engines(self._rows, None, sizes, number, before, self._versions, progress)
        number, before = 10 if runs is None else runs, 1 if warmup is None else warmup
        return bench_decoders(self._rows, sizes, max_tokens, number, before, self._versions, progress)

    def keep(self, found: Benchmark) -> None:
        """Keep each folder's times in it; of one that was named twice, the first."""
        first = {folder.resolve(): name for name, folder in reversed(self._folders.items())}
        for folder, name in first.items():
            keep_speed(folder, found.speed_of(name))


def _runtimes(folders: Iterable[Path]) -> dict[str, str]:
    """Versions of the runtimes that engines in these folders need."""
    targets = [Target.parse(Report.read(folder / MANIFEST).target) for folder in folders]
    return {k: v for target in targets for k, v in find_backend(target, written=True).probe(target).versions.items()}


def _untouched(folder: Path | None, opening: Mapping[str, Any]) -> Engine:
    """The untouched model of an engine's folder, ready to be timed."""
    if folder is None:
        where, fix = "bench(eager=True)", "pass one engine as its folder"
        raise MoecError("M201", "no engine folder names the model", where, fix)
    engine = open_recorded(Report.read(folder / MANIFEST), opening).reference()
    engine.be_timed()
    return engine
