"""Engines and backends: the two protocols that everything after compilation works with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.pipeline.pipeline import Pipeline
from moec.program.decoder_signature import complete
from moec.program.program import PLUS, Input, Program
from moec.progress import Progress
from moec.targets.target import Target


class Engine(ABC):
    """Something that runs: named inputs to named outputs, numpy or torch in, the same kind out.

    Attributes:
        name: for tables.
        inputs, outputs: signature.
    """

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]

    @abstractmethod
    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on tensors that have been checked against the signature."""

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """Run by name. Raises M211 on a missing, unknown or ill-shaped input."""
        as_numpy = any(isinstance(v, np.ndarray) for v in inputs.values())
        result = self.run(self.check(inputs))
        return {k: v.numpy() for k, v in result.items()} if as_numpy else result

    def check(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The inputs as tensors in the signature's order; dtypes must agree exactly, dynamic dimensions with each other.

        A decoder's absent cache is an empty one, its absent mask all ones.
        """
        names, inputs = [i.name for i in self.inputs], complete(self.inputs, inputs)
        for name in inputs:
            if name not in names:
                raise MoecError("M211", f"no input is called {name!r}", self.name, f"the inputs are {', '.join(names)}")
        sizes: dict[str, int] = {}
        return {spec.name: _fit(spec, inputs, sizes, self.name) for spec in self.inputs}

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether the engine was made for these sizes of the dynamic dimensions, by name; one that is outside is not asked for a proof."""
        return True

    def close(self) -> None:  # noqa: B027  # most engines have nothing to close
        """Free the runtime's resources."""


def _fit(spec: Input, inputs: Mapping[str, Any], sizes: dict[str, int], engine: str) -> Tensor:
    if spec.name not in inputs:
        raise MoecError("M211", f"input {spec.name!r} is missing", engine, f"pass {spec.name} as {_form(spec.dtype, spec.shape)}")
    value = inputs[spec.name]
    try:
        value = value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        fix = f"pass {_form(spec.dtype, spec.shape)}"
        raise MoecError("M211", f"input {spec.name!r} is a {type(value).__name__}, not an array", engine, fix) from error
    fits = value.dtype == spec.dtype and value.dim() == len(spec.shape)
    for size, dim in zip(value.shape, spec.shape, strict=False):
        fits = fits and size == _size(dim, size, sizes)
    if not fits:
        fix = f"pass {_form(spec.dtype, spec.shape)}; equal names are equal sizes"
        raise MoecError("M211", f"input {spec.name!r} is {_form(value.dtype, value.shape)}", engine, fix)
    return value


def _form(dtype: torch.dtype, shape: Sequence[int | str]) -> str:
    return f"{str(dtype)[6:]}{list(shape)}"


def _size(dim: int | str, found: int, sizes: dict[str, int]) -> int:
    """What a dimension must be; a name takes the first size that it meets, and of a sum the missing part."""
    if isinstance(dim, int):
        return dim
    if PLUS not in dim:
        return sizes.setdefault(dim, found)
    parts = dim.split(PLUS)
    unknown = [p for p in parts if p not in sizes]
    if len(unknown) == 1:
        sizes[unknown[0]] = found - sum(sizes[p] for p in parts if p in sizes)
    return sum(sizes.get(p, found) for p in parts)


class EagerEngine(Engine):
    """A program in eager PyTorch, weights loaded once."""

    def __init__(self, program: Program, device: str = "cpu") -> None:
        self.name, self.inputs, self.outputs = "eager", program.inputs, program.outputs
        self._module = program.module(device)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.inference_mode():
            values = self._module(*(inputs[i.name] for i in self.inputs))
        return dict(zip(self.outputs, values, strict=True))


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
        code: of the error that says so: M301 for software, M302 for hardware.
    """

    available: bool
    versions: dict[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    missing: str = ""
    install: str = ""
    code: str = "M301"


class Backend(ABC):
    """A runtime that programs are lowered to. One class a file in `backends/`, named as the runtime."""

    name: str

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
        """How far the target's own kernels may be from the program that they run, as `max |d|/std`, where the user chose inexact ones; None
        for kernels that only round in their precision."""
        return None

    @abstractmethod
    def legalize(self, target: Target) -> Pipeline:
        """The passes that bring a program into the form that `build` takes."""

    @abstractmethod
    def build(self, program: Program, target: Target, folder: Path, optimize_for: str = "latency", progress: Progress | None = None) -> dict[str, Any]:
        """Write the engine's files into an existing empty folder; returns facts for the report, `blocks` among them: one entry a MoE
        operator with the lowering that it got and why. Where a stand-in runs them for the proof, `stand_in` says in phrases what that does
        otherwise, and `unproven` what it leaves open."""

    def export(self, program: Program, target: Target, folder: Path, optimize_for: str = "latency", progress: Progress | None = None) -> dict[str, Any]:
        """The part of `build` that needs neither the target's runtime nor its hardware, for `moec compile --no-build`; facts as `build`'s.

        Raises:
            MoecError: M208 where building has no such part.
        """
        raise MoecError("M208", f"building for {self.name} needs no other machine", str(target), "compile without --no-build")

    def finish(self, folder: Path, target: Target, optimize_for: str = "latency", progress: Progress | None = None) -> dict[str, Any]:
        """The rest of `build`, on what `export` wrote, or again on what `build` wrote; facts that take the place of older ones.

        Raises:
            MoecError: M208 where building has no such part.
        """
        raise MoecError("M208", f"an engine for {self.name} is built already", str(target), "compile it anew with `moec compile --from moec.json`")

    def layouts(self, target: Target) -> tuple[str, ...]:
        """The layouts of `moec.layouts` whose clients can run this target's engines."""
        return ("plain", "genai", "triton")

    @abstractmethod
    def outputs(self, folder: Path) -> tuple[Input, ...]:
        """Names, dtypes and shapes of what the engine in this folder gives, dynamic dimensions named as the inputs' are; reads no weights."""

    def shares_cache(self, folder: Path) -> bool:
        """Whether past and present of every layer of the decoder in this folder may be one buffer, to which it appends; reads no weights."""
        return False

    def stand_in(self, target: Target, built: bool = True) -> Target | None:
        """A target of this machine that runs the same files, for the proof where the target's own hardware is missing, or the engine is not
        `built` yet; None where all is here, or nothing else runs them. Asked also where the runtime is not installed."""
        return None

    @abstractmethod
    def load(self, folder: Path, target: Target, prepack: bool = True) -> Engine:
        """An engine from the files that `build` wrote. Without `prepack` its weights stay memory-mapped where the runtime can."""
