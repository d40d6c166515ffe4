"""What a module's sample inputs say of its inputs: dynamic dimensions, and the values that each may take."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from moec.errors import MoecError
from moec.frontend.domain import Domain
from moec.program.program import Program
from moec.registry import did_you_mean


def guess_dynamic(inputs: Mapping[str, Tensor]) -> dict[str, tuple[str | None, ...]]:
    """The first dimension of every input is the batch; the second of integer ones is the sequence."""
    dims = {n: ["batch", *([None] * (t.dim() - 1))] if t.dim() else [] for n, t in inputs.items()}
    for name, t in inputs.items():
        if t.dim() >= 2 and not t.is_floating_point():
            dims[name][1] = "sequence"
    return {n: tuple(d) for n, d in dims.items()}


def specs_of(inputs: Mapping[str, Tensor], dynamic: Mapping[str, Sequence[str | int | None]] | None) -> tuple[str, ...]:
    """Samples as `name=dims:dtype[<high]` texts, which a manifest can hold and `parse_inputs` reads."""
    dims = guess_dynamic(inputs) if dynamic is None else dynamic
    return tuple(_spec(name, t, dims.get(name, ())) for name, t in inputs.items())


def _spec(name: str, sample: Tensor, dims: Sequence[str | int | None]) -> str:
    whole = sample.numel() and not (sample.is_floating_point() or sample.is_complex())
    high = f"<{max(2, int(sample.max()) + 1)}" if whole else ""
    return f"{name}={','.join(map(str, shape_of(sample, dims)))}:{str(sample.dtype)[6:]}{high}"


def guess_domain(name: str, sample: Tensor) -> Domain:
    """Integers up to the sample's largest; masks and positions by their names."""
    high = int(sample.max()) + 1 if not sample.is_floating_point() and sample.numel() else 2
    return named_domain(name, high)


def named_domain(name: str, high: int = 2) -> Domain:
    """What an input's name says of its values; `high` bounds its integers."""
    kinds = {"mask": "mask", "position": "position", "type": "type"}
    kind: Any = next((k for part, k in kinds.items() if part in name), "number")
    return Domain(kind, high)


def token_domains(program: Program) -> dict[str, Domain]:
    """Inputs that an embedding looks up directly are token ids below its number of rows."""
    found = {}
    for node in program.nodes(torch.ops.aten.embedding.default):
        table, ids = program.weight_of(node.args[0]), node.args[1]
        if table is not None and isinstance(ids, fx.Node) and ids.op == "placeholder":
            found[str(ids.target)] = Domain("token", table.shape[0])
    return found


def shape_of(t: Tensor, dims: Sequence[str | int | None]) -> tuple[int | str, ...]:
    """A tensor's shape with the names of its dynamic dimensions put in."""
    given = [*dims, *([None] * (t.dim() - len(dims)))]
    return tuple(d if isinstance(d, str) else int(size) for d, size in zip(given, t.shape, strict=True))


def require_known(module: nn.Module, names: Iterable[str]) -> None:
    """Raise M201 for a name that no argument of the module's forward has, with the nearest that one has."""
    try:
        known = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # it is not written in Python
        return
    if any(argument.kind in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL) for argument in known.values()):
        return
    stranger = next((name for name in names if name not in known), None)
    if stranger is not None:
        what = f"the forward of {type(module).__name__} has no argument {stranger!r}"
        raise MoecError("M201", what, "inputs", did_you_mean(stranger, list(known), f"it has {', '.join(known)}"))
