"""Which module of a model is the first whose values are wrong: what each gives, on either side, and the comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from moec.execution.engine import Engine
from moec.execution.trace import cached_values, trace, trace_module
from moec.program.program import Program
from moec.program.provenance import module_paths
from moec.program.signature import Sample
from moec.proof.compare import Tolerance
from moec.proof.decided_tokens import ComparedTokens

Values = dict[str, list[Tensor]]  # by a module's dotted name


def first_layer(good: Values, bad: Values, tolerance: Tolerance) -> tuple[str, float, tuple[Tensor, Tensor] | None]:
    """The first module, in the order in which they finish, none of whose outputs is among the candidate's values in
    that module.

    A module inside one that agrees is passed over: what it computes was only arranged differently. So is one, tables of
    a rotary embedding for example, after which a module made of others agrees that stands elsewhere: what is wrong here
    would be wrong there. Returns its name, max |d|/std, and its value on both sides; values are held to each figure
    that the tolerance bounds.
    """
    found = {
        path: best
        for path, values in good.items()
        if path and (best := _closest(values, bad.get(path, []), tolerance)) is not None
    }
    agree = {path for path, (used, _) in found.items() if used <= 1}
    for path, (_, pair) in found.items():
        parts = path.split(".")
        inside = any(".".join(parts[:n]) in agree for n in range(1, len(parts) + 1))
        if not inside and not any(
            _parent(other) != _parent(path) for other in _later(path, list(found)) if other in agree
        ):
            return path, _figures(*pair)[0], pair
    return "", 0.0, None


def _later(path: str, order: list[str]) -> list[str]:
    """The modules made of others that finish after one and don't hold it."""
    after = order[order.index(path) + 1 :]
    return [p for p in after if not path.startswith(f"{p}.") and any(q.startswith(f"{p}.") for q in order)]


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _closest(
    wanted: Sequence[Tensor], values: Sequence[Tensor], tolerance: Tolerance
) -> tuple[float, tuple[Tensor, Tensor]] | None:
    """The two values that are nearest, and how much of the tolerance their difference takes."""
    pairs = [(tolerance.used(*_figures(w, v)), (w, v)) for w in wanted for v in values if w.numel() == v.numel() > 1]
    return min(pairs, key=lambda p: p[0]) if pairs else None


def _figures(want: Tensor, got: Tensor) -> tuple[float, float, float]:
    """The largest difference, its root mean square, and that of the worst row, in standard deviations of `want`."""
    spread, error = float(want.double().std(correction=0)), got.double().reshape(want.shape) - want.double()
    if error.isnan().any():
        return (math.inf,) * 3
    squares = error.square()
    found = float(error.abs().max()), math.sqrt(squares.mean()), math.sqrt(squares.mean(-1).max())
    largest, rms, row = (f / spread if spread else (math.inf if f else 0.0) for f in found)
    return largest, rms, row


def outputs_of(program: Program, sample: Sample) -> Values:
    """The values that leave each module, by the order of the last one."""
    found: Values = {}
    cached = cached_values(program)

    def watch(node: fx.Node, value: Any, _args: Any, _kwargs: Any) -> None:
        for path in module_paths(node) if _is_real(value) and node.name not in cached else ():
            if any(path not in module_paths(user) for user in node.users):
                found[path] = [*found.pop(path, []), value]

    trace(program, sample, watch)
    return found


def everything_in(program: Program, sample: Sample) -> Values:
    """All values inside each module."""
    found: Values = {}

    def watch(node: fx.Node, value: Any, _args: Any, _kwargs: Any) -> None:
        for path in module_paths(node) if _is_real(value) else ():
            found.setdefault(path, []).append(value)

    trace(program, sample, watch)
    return found


def module_outputs(reference: Engine, sample: Sample) -> Values:
    """What each module of the untouched model gives; nothing when the reference has no modules."""
    module = getattr(reference, "module", None)
    return trace_module(module, lambda: reference(**sample)) if isinstance(module, torch.nn.Module) else {}


def engine_values(engine: Engine, sample: Sample, paths: Iterable[str]) -> Values:
    """Everything inside an engine, for each module: a runtime's graph doesn't know modules, and a value is known by its
    numbers."""
    intermediates = getattr(engine, "intermediates", None)
    values = list(intermediates(sample).values()) if intermediates else []
    return dict.fromkeys(paths, values)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def rows_of_tokens(good: Values, bad: Values, compared: ComparedTokens) -> tuple[Values, Values]:
    """The rows of the tokens that can be compared, of the values that have a row a token, in any shape; others say
    nothing when a token was left out."""
    count = compared.tokens.numel()

    def rows(value: Tensor) -> bool:
        return value.dim() > 1 and (len(value) == count or value.shape[:2] == compared.tokens.shape)

    def cut(values: Values) -> Values:
        return {
            path: [v.reshape(count, -1)[compared.tokens.flatten()] for v in found if rows(v)]
            for path, found in values.items()
        }

    return cut(good), cut(bad)
