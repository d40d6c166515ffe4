"""The interface of a backend, and the one that a target names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from moec import registry
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Input, Program
from moec.progress import Progress
from moec.targets.declared import Declared
from moec.targets.target import Target
from moec.weights.weight import Weight


def find_backend(target: Target, runtime: bool = True, written: bool = False) -> Backend:
    """The target's backend, ready to be used; with `runtime=False` its stand-in on this machine is enough. `written`:
    the engine is there already, so that an error does not advise to write it.

    Raises:
        MoecError: M202 for an unknown one, M208 for bad options, M301 or M302 when its runtime or hardware is not here.
    """
    backend: Backend = registry.find("backends", target.backend)()
    probe = backend.probe(target)
    if not probe.available and (runtime or backend.stand_in(target) is None):
        fix = "; ".join(filter(None, [probe.install, "" if written else probe.later]))
        raise MoecError(probe.code, f"{target.backend} cannot be used here: {probe.missing}", str(target), fix)
    refuse(backend.options(target))
    return backend


def refuse(refusals: Sequence[Refusal]) -> None:
    """Raise M208 with the first reason, if there is any."""
    if refusals:
        raise MoecError("M208", refusals[0].reason, refusals[0].where, refusals[0].fix)


@dataclass(frozen=True)
class Refusal:
    """One reason why a target cannot take a program.

    Attributes:
        reason: what is not supported.
        where: the node or option.
        fix: the way out.
    """

    reason: str
    where: str
    fix: str


@dataclass(frozen=True)
class Probe:
    """What a backend finds on this machine.

    Attributes:
        available: whether engines can be built and run here.
        versions: package -> version.
        devices: what the runtime offers (execution providers, GPUs).
        missing: what is not here, empty when available.
        install: the command that installs it, or another way out.
        later: what a compile can do here all the same; empty where it can do nothing.
        code: of the error that says so: M301 for software, M302 for hardware.
        lacking: what a part of the engines needs and is not here, each with what needs it and where it comes from.
    """

    available: bool
    versions: dict[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    missing: str = ""
    install: str = ""
    later: str = ""
    code: str = "M301"
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True)
class Constant:
    """A weight, a table, a number in an operator, or an operator itself.

    Attributes:
        name: unique in the file. A weight that is written as the program has it has the program's name.
        dtype, shape: as the file states them; empty for a `text`.
        weight: its numbers, read when they are asked for; None for a `text`. Elements of four bits are read in pairs,
            as bytes.
        text: what is no number: an operator with the values that it reads, or a setting in words.
        lazy: whether it is computed from weights of the program, not a number that was worked out while lowering.
    """

    name: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    weight: Weight | None = None
    text: str = ""
    lazy: bool = False

    @property
    def form(self) -> tuple[str, tuple[int, ...]]:
        """Constants of equal form can be compared."""
        return self.dtype, self.shape


class Backend(ABC):
    """A runtime that programs are lowered to. One class a file in `backends/`, named as the runtime."""

    name: str
    constants_file = "the engine"  # what `constants` reads, in words
    joins: ClassVar[bool] = False  # whether clients run engines of several graphs, see `join`
    # what its targets' text may say; a module that holds both as `OPTIONS` and `DEVICES` is asked without the class
    declared: ClassVar[Declared] = {}
    devices: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def probe(self, target: Target) -> Probe:
        """What is installed here; never raises."""

    @abstractmethod
    def options(self, target: Target) -> list[Refusal]:
        """What of the target's own text is not understood; asked before any work is done."""

    def precision(self, target: Target) -> torch.dtype:
        """The floating dtype that the target computes in."""
        return torch.float32

    @abstractmethod
    def supports(self, program: Program, target: Target) -> list[Refusal]:
        """Why this program cannot be built for the target; empty means it can."""

    def deviation(self, program: Program, target: Target) -> float | None:
        """How far the target's own kernels may be from the program that they run, as `max |d|/std`, where the user
        chose inexact ones; None for kernels that only round in their precision."""
        return None

    def shown(self, folder: Path, target: Target) -> Target:
        """The target without the options that would loosen a later proof and that the engine's files in this folder do
        not show: a manifest's word for them counts nothing."""
        return target

    @abstractmethod
    def legalize(self, target: Target) -> Pipeline:
        """The passes that bring a program into the form that `build` takes."""

    @abstractmethod
    def build(
        self,
        program: Program,
        target: Target,
        folder: Path,
        optimize_for: str = "latency",
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Write the engine's files into an existing empty folder; returns facts for the report, `blocks` among them:
        one entry a MoE operator with the lowering that it got and why. Where a stand-in runs them for the proof,
        `stand_in` says in phrases what that does otherwise, and `unproven` what it leaves open.

        A backend that lowers in named steps calls `progress.step` after each, for `moec compile --dump`."""

    def stages(self, program: Program, target: Target, optimize_for: str = "latency") -> Iterator[tuple[str, Engine]]:
        """The lowering that `build` does, step by step, for `moec verify --bisect`: the name of each step that changes
        the graph, and an engine that runs the graph as it then is, on this machine. Nothing for a backend whose
        lowering is not made of steps.

        An engine raises M208 when its graph cannot be run in the middle of the lowering; bisection says so and goes
        on."""
        return iter(())

    def export(
        self,
        program: Program,
        target: Target,
        folder: Path,
        optimize_for: str = "latency",
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """The part of `build` that needs neither the target's runtime nor its hardware, for `moec compile --no-build`;
        facts as `build`'s.

        Raises:
            MoecError: M208 where building has no such part.
        """
        raise MoecError(
            "M208", f"building for {self.name} needs no other machine", str(target), "compile without --no-build"
        )

    def finish(
        self, folder: Path, target: Target, optimize_for: str = "latency", progress: Progress | None = None
    ) -> dict[str, Any]:
        """The rest of `build`, on what `export` wrote, or again on what `build` wrote; facts that take the place of
        older ones.

        Raises:
            MoecError: M208 where building has no such part.
        """
        raise MoecError(
            "M208",
            f"an engine for {self.name} is built already",
            str(target),
            "compile it anew with `moec compile --from moec.json`",
        )

    def client_settings(self, target: Target) -> Mapping[str, str]:
        """Settings without which other clients than moec's would compute otherwise, or hold more: of the runtime's
        provider for the target's device, and with a dot in their names of the session; under `OPERATORS` of
        `moec.layouts.facts` the name of a library beside the graph. Nothing where its defaults are right."""
        return {}

    def layouts(self, target: Target) -> tuple[str, ...]:
        """The layouts of `moec.layouts` whose clients can run this target's engines; those beside `plain` are for ONNX
        models."""
        return ("plain",)

    @abstractmethod
    def outputs(self, folder: Path) -> tuple[Input, ...]:
        """Names, dtypes and shapes of what the engine in this folder gives, dynamic dimensions named as the inputs'
        are; reads no weights."""

    def constants(self, folder: Path) -> Iterable[Constant] | None:
        """Everything of fixed value in the engine of this folder, read when it is asked for; where the runtime's own
        file is opaque, in the graph that it is built from. None for a backend that cannot say."""
        return None

    def lowered_constants(
        self, program: Program, target: Target, folder: Path, optimize_for: str = "latency"
    ) -> Iterable[Constant] | None:
        """What `constants` must give for this program, by the same names and with no number from the folder's files;
        of the folder only what says how it was built. None for a backend that cannot say."""
        return None

    def shares_cache(self, folder: Path) -> bool:
        """Whether past and present of every layer of the decoder in this folder may be one buffer, to which it appends;
        reads no weights."""
        return False

    def joins_texts(self, folder: Path) -> bool:
        """Whether any call of one text that the engine in this folder takes may be made for several at once; reads no
        weights."""
        return True

    def stand_in(self, target: Target, built: bool = True) -> Target | None:
        """A target of this machine that runs the same files, for the proof where the target's own hardware is missing,
        or the engine is not `built` yet; None where all is here, or nothing else runs them. Question also where the
        runtime is not installed."""
        return None

    def join(self, folder: Path, parts: Sequence[str]) -> Mapping[str, str]:
        """Write, beside the folders of an engine's parts, what clients load that run these parts together: the same
        graphs, under the names that they look for. Returns the file's name of each part.

        Raises:
            MoecError: M208 where a runtime has no such clients, see `joins`.
        """
        raise MoecError("M208", f"{self.name} has no engines of several graphs", str(folder), "compile each part alone")

    def require_joined(self, folder: Path, parts: Sequence[str]) -> None:  # noqa: B027  # most join nothing
        """Raise M106 where clients load something else than what `join` makes of the parts that lie there now."""

    def load_part(self, folder: Path, part: str, target: Target, prepack: bool = True) -> Engine:
        """An engine from what `join` wrote of a part; else see `load`."""
        return self.load(folder / part, target, prepack)

    @abstractmethod
    def load(self, folder: Path, target: Target, prepack: bool = True) -> Engine:
        """An engine from the files that `build` wrote. Without `prepack` its weights stay memory-mapped where the
        runtime can."""
