"""The file of a built engine as what it holds: weights, tables, numbers in operators; beside what it ought to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moec.program.program import Program
from moec.targets.backend import Backend, Constant
from moec.targets.target import Target


@dataclass(frozen=True)
class EngineFile:
    """A built engine as what it holds, beside what it ought to.

    Attributes:
        backend, target: which built it. folder: where its own files lie.
        optimize_for: as it was built, `latency` or `throughput`.
    """

    backend: Backend
    target: Target
    folder: Path
    optimize_for: str = "latency"

    def held(self) -> Mapping[str, Constant] | None:
        """The constants of the file by name; None for a backend that cannot say."""
        return _by_name(self.backend.constants(self.folder))

    def due(self, program: Program) -> Mapping[str, Constant] | None:
        """The constants that the file of a program must hold, by the same names; None for a backend that cannot
        say."""
        return _by_name(self.backend.lowered_constants(program, self.target, self.folder, self.optimize_for))


def _by_name(found: Iterable[Constant] | None) -> Mapping[str, Constant] | None:
    return None if found is None else {constant.name: constant for constant in found}
