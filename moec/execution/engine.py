"""Engines: the protocol that everything after compilation works with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.program.conditions import Assumptions, Condition, Values, broken, require
from moec.program.decoder_signature import complete
from moec.program.program import Input, Program
from moec.program.signature import is_computed, names_in, per, size_of
from moec.registry import did_you_mean

# Tokens a call for which kernels are chosen before the first caller comes, unless a target says otherwise: 1, 2, 4 and
# so on. Longer prompts take memory that a caller may not have meant to give.
TUNED = 512


class Engine(ABC):
    """Something that runs: named inputs to named outputs, numpy or torch in, the same kind out.

    Attributes:
        name: for tables.
        inputs, outputs: signature.
        conditions: on the sizes of the inputs, for which alone the engine is the model.
        values: that inputs may hold.
        prepared: what was done when it was loaded and how long that took, in words; empty where nothing was.
    """

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    conditions: tuple[Condition, ...] = ()
    values: tuple[Values, ...] = ()
    prepared: str = ""

    @abstractmethod
    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on tensors that have been checked against the signature."""

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """Run by name. Raises M211 on a missing, unknown or ill-shaped input, M213 for sizes and M214 for values that
        the engine was not made for."""
        as_numpy = any(isinstance(v, np.ndarray) for v in inputs.values())
        result = self.run(self.check(inputs))
        return {k: v.numpy(force=True) for k, v in result.items()} if as_numpy else result

    def check(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The inputs as tensors in the signature's order; dtypes must agree exactly, dynamic dimensions with each
        other.

        A decoder's absent cache is an empty one, its absent mask all ones.
        """
        return self.fitting(self.inputs, inputs)

    def fitting(self, specs: Sequence[Input], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """See `check`, where only these of the engine's inputs are asked for."""
        names, inputs = [i.name for i in specs], complete(specs, inputs)
        for name in inputs:
            if name not in names:
                fix = did_you_mean(name, list(names), f"the inputs are {', '.join(names)}")
                raise MoecError("M211", f"no input is called {name!r}", self.name, fix)
        sizes: dict[str, int] = {}
        fitting = {spec.name: _fit(spec, inputs, sizes, self.name) for spec in specs}
        require(self.conditions, sizes, self.name)
        for values in (v for v in self.values if v.name in fitting):
            values.require(fitting[values.name], self.name)
        return fitting

    def assume(self, assumptions: Assumptions) -> None:
        """Ask every call for what a program assumes, beside what the engine's own files say."""
        self.conditions = tuple(dict.fromkeys((*self.conditions, *assumptions.sizes)))
        names = {i.name for i in self.inputs}
        self.values = tuple(dict.fromkeys((*self.values, *(v for v in assumptions.values if v.name in names))))

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether the engine was made for these sizes of the dynamic dimensions, by name; one that is outside is not
        asked for a proof. A dimension that is not named may be of any size."""
        return broken(self.conditions, sizes) is None

    def be_timed(self) -> None:  # noqa: B027  # most engines do nothing else
        """Leave out what only a proof needs."""

    def tensors(self) -> dict[str, Tensor]:
        """The parameters and buffers of an untouched model by name, none of them copied; empty for an engine that has
        no module behind it."""
        return {}

    def close(self) -> None:  # noqa: B027  # most engines have nothing to close
        """Free the runtime's resources."""


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor that hangs on a module or on one inside it, by dotted name: parameters, buffers, and plain
    attributes."""
    found: dict[str, Tensor] = {}
    for path, inner in module.named_modules(remove_duplicate=False):
        plain = {name: value for name, value in vars(inner).items() if isinstance(value, Tensor)}
        for name, value in {**inner._parameters, **inner._buffers, **plain}.items():
            if value is not None:
                found[f"{path}.{name}" if path else name] = value
    return found


def _fit(spec: Input, inputs: Mapping[str, Any], sizes: dict[str, int], engine: str) -> Tensor:
    if spec.name not in inputs:
        raise MoecError(
            "M211", f"input {spec.name!r} is missing", engine, f"pass {spec.name} as {_form(spec.dtype, spec.shape)}"
        )
    value = inputs[spec.name]
    try:
        value = value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        fix = f"pass {_form(spec.dtype, spec.shape)}"
        raise MoecError(
            "M211", f"input {spec.name!r} is a {type(value).__name__}, not an array", engine, fix
        ) from error
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
    if not is_computed(dim):
        return sizes.setdefault(dim, found)
    if per(dim) > 1:
        return size_of(dim, sizes) if sizes.keys() >= set(names_in(dim)) else found
    parts = names_in(dim)
    unknown = [p for p in parts if p not in sizes]
    if len(unknown) == 1:
        sizes[unknown[0]] = found - sum(sizes[p] for p in parts if p in sizes)
    return sum(sizes.get(p, found) for p in parts)


class EagerEngine(Engine):
    """A program in eager PyTorch, weights loaded once."""

    def __init__(self, program: Program, device: str = "cpu") -> None:
        self.name, self.inputs, self.outputs = "eager", program.inputs, program.outputs
        self.conditions, self.values = program.conditions, program.values
        self._module = program.module(device)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.inference_mode():
            values = self._module(*(inputs[i.name] for i in self.inputs))
        return dict(zip(self.outputs, values, strict=True))
