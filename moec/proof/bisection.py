"""Where an engine's making departs from the untouched model: the first pass, then the first layer, then the expert."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx

from moec.execution.choices import choice
from moec.execution.engine import Engine
from moec.execution.streaming import StreamingEngine
from moec.execution.trace import cached_values, trace, trace_module
from moec.program.moe_call import EXPERTS, MOE
from moec.program.program import Program
from moec.program.provenance import module_path, module_paths
from moec.program.signature import Sample
from moec.proof.compare import Tolerance, compare
from moec.proof.decided_tokens import ComparedTokens

Values = dict[str, list[Tensor]]  # by a module's dotted name


@dataclass(frozen=True)
class Stage:
    """One step of the making: `capture`, a pass, or the engine; how far it is from the untouched model."""

    name: str
    deviation: float
    ok: bool


@dataclass(frozen=True)
class Divergence:
    """Where the numbers go wrong.

    Attributes:
        stages: every step in order. stage: the first that diverges, empty when none does.
        layer: dotted name of the first module whose output diverges there; empty when nothing inside could be compared.
        layer_deviation: by how much, as max |d|/std.
        experts: those that all wrong tokens of the layer went to; empty without experts in it.
        wrong_tokens, tokens: of the layer, where it has experts.
    """

    stages: tuple[Stage, ...]
    stage: str = ""
    layer: str = ""
    layer_deviation: float = 0.0
    experts: tuple[int, ...] = ()
    wrong_tokens: int = 0
    tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"  {'ok   ' if s.ok else 'WRONG'} {s.deviation:9.2e}  {s.name}" for s in self.stages]
        if not self.stage:
            return "\n".join(["nothing diverges", *lines])
        layer = (
            f"{self.layer} (max |d|/std {self.layer_deviation:.2g})"
            if self.layer
            else "not found: no value inside could be matched"
        )
        lines = [f"first pass:  {self.stage}", *lines, f"first layer: {layer}"]
        if self.tokens:
            which = (
                f"{', '.join(map(str, self.experts))}: all wrong tokens went there"
                if self.experts
                else "none in particular"
            )
            lines.append(f"expert:      {which} ({self.wrong_tokens} of {self.tokens} tokens wrong)")
        return "\n".join(lines)


def bisect(
    reference: Engine,
    programs: Sequence[tuple[str, Program]],
    samples: Sequence[Sample],
    tolerance: Tolerance,
    engine: Engine | None = None,
    kept: Sequence[ComparedTokens] | None = None,
) -> Divergence:
    """Find the first step that departs from the reference, and where in it.

    Args:
        reference: the untouched model. When it has a `module`, a wrong capture can be bisected to a layer.
        programs: the program after each step and the step's name, the captured one first
            (`moec.pipeline.hooks.KeepHook`).
        samples: inputs on which the error shows.
        tolerance: what may differ.
        engine: what was built from the last program. Named "the backend's lowering" in the result. When it has a method
            `intermediates(inputs)` that returns all values inside by name, it can be bisected to a layer too.
        kept: in half precision, what of each sample can be compared (`moec.proof.decided_tokens`); all of it by
            default.
    """
    stages: list[Stage] = []
    for k, (name, program) in enumerate(programs):
        stages.append(_stage(name, reference, StreamingEngine(program), samples, tolerance, kept))
        if not stages[-1].ok:
            sample, part = _worst(reference, StreamingEngine(program), samples, tolerance, kept)
            good = _outputs(programs[k - 1][1], sample) if k else _module_outputs(reference, sample)
            return _inside(tuple(stages), good, _everything(program, sample), program, sample, tolerance, part)
    if engine is None:
        return Divergence(tuple(stages))
    stages.append(_stage("the backend's lowering", reference, engine, samples, tolerance, kept))
    if stages[-1].ok:
        return Divergence(tuple(stages))
    (sample, part), program = _worst(reference, engine, samples, tolerance, kept), programs[-1][1]
    good = _outputs(program, sample)
    return _inside(tuple(stages), good, _engine_values(engine, sample, good), program, sample, tolerance, part)


def _stage(
    name: str,
    reference: Engine,
    candidate: Engine,
    samples: Sequence[Sample],
    tolerance: Tolerance,
    kept: Sequence[ComparedTokens] | None,
) -> Stage:
    result = compare(reference, candidate, samples, tolerance, kept)
    return Stage(name, result.worst.deviation, result.ok)


def _worst(
    reference: Engine,
    candidate: Engine,
    samples: Sequence[Sample],
    tolerance: Tolerance,
    kept: Sequence[ComparedTokens] | None,
) -> tuple[Sample, ComparedTokens | None]:
    parts: Sequence[ComparedTokens | None] = kept or [None for _ in samples]
    pairs = list(zip(samples, parts, strict=True))
    return max(
        pairs, key=lambda p: compare(reference, candidate, [p[0]], tolerance, [p[1]] if p[1] else None).worst.deviation
    )


def _inside(
    stages: tuple[Stage, ...],
    good: Values,
    bad: Values,
    program: Program,
    sample: Sample,
    tolerance: Tolerance,
    kept: ComparedTokens | None = None,
) -> Divergence:
    """Name the layer and the expert in the stage that was found."""
    if kept is not None:
        good, bad = _of_tokens(good, bad, kept)
    layer, deviation, pair = first_layer(good, bad, tolerance)
    if pair is None:
        return Divergence(stages, stages[-1].name)
    ids = _chosen(program, sample, layer)
    ids = ids[kept.rows(len(ids))] if ids is not None and kept is not None else ids
    if ids is None or not len(ids) or pair[0].numel() % len(ids):
        return Divergence(stages, stages[-1].name, layer, deviation)
    wrong = wrong_tokens(*pair, len(ids), tolerance)
    return Divergence(stages, stages[-1].name, layer, deviation, blame(ids, wrong), int(wrong.sum()), len(ids))


def _of_tokens(good: Values, bad: Values, kept: ComparedTokens) -> tuple[Values, Values]:
    """The rows of kept tokens, of the values that have a row a token, in any shape; others say nothing when a token was
    left out."""
    count = kept.tokens.numel()

    def rows(value: Tensor) -> bool:
        return value.dim() > 1 and (len(value) == count or value.shape[:2] == kept.tokens.shape)

    def cut(values: Values) -> Values:
        return {
            path: [v.reshape(count, -1)[kept.tokens.flatten()] for v in found if rows(v)]
            for path, found in values.items()
        }

    return cut(good), cut(bad)


# ---------------------------------------------------------------------- layers
def first_layer(good: Values, bad: Values, tolerance: Tolerance) -> tuple[str, float, tuple[Tensor, Tensor] | None]:
    """The first module, in the order in which they finish, none of whose outputs is among the candidate's values in
    that module.

    A module inside one that agrees is passed over: what it computes was only arranged differently. So is one, tables of
    a rotary embedding for example, after which a module made of others agrees that stands elsewhere: what is wrong here
    would be wrong there.
    """
    found = {
        path: best
        for path, values in good.items()
        if path and (best := _closest(values, bad.get(path, []))) is not None
    }
    agree = {path for path, (deviation, _) in found.items() if deviation <= tolerance.deviation}
    for path, (deviation, pair) in found.items():
        parts = path.split(".")
        inside = any(".".join(parts[:n]) in agree for n in range(1, len(parts) + 1))
        if not inside and not any(
            _parent(other) != _parent(path) for other in _later(path, list(found)) if other in agree
        ):
            return path, deviation, pair
    return "", 0.0, None


def _later(path: str, order: list[str]) -> list[str]:
    """The modules made of others that finish after one and don't hold it."""
    after = order[order.index(path) + 1 :]
    return [p for p in after if not path.startswith(f"{p}.") and any(q.startswith(f"{p}.") for q in order)]


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _closest(wanted: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[float, tuple[Tensor, Tensor]] | None:
    pairs = [(_distance(w, v), (w, v)) for w in wanted for v in values if w.numel() == v.numel() > 1]
    return min(pairs, key=lambda p: p[0]) if pairs else None


def _distance(want: Tensor, got: Tensor) -> float:
    want, got = want.double().flatten(), got.double().flatten()
    spread, error = float(want.std(correction=0)), float((got - want).abs().max())
    if math.isnan(error):
        return math.inf
    return error / spread if spread else (math.inf if error else 0.0)


def _outputs(program: Program, sample: Sample) -> Values:
    """The values that leave each module, by the order of the last one."""
    found: Values = {}
    cached = cached_values(program)

    def watch(node: fx.Node, value: Any, _args: Any, _kwargs: Any) -> None:
        for path in module_paths(node) if _is_real(value) and node.name not in cached else ():
            if any(path not in module_paths(user) for user in node.users):
                found[path] = [*found.pop(path, []), value]

    trace(program, sample, watch)
    return found


def _everything(program: Program, sample: Sample) -> Values:
    """All values inside each module."""
    found: Values = {}

    def watch(node: fx.Node, value: Any, _args: Any, _kwargs: Any) -> None:
        for path in module_paths(node) if _is_real(value) else ():
            found.setdefault(path, []).append(value)

    trace(program, sample, watch)
    return found


def _module_outputs(reference: Engine, sample: Sample) -> Values:
    module = getattr(reference, "module", None)
    return trace_module(module, lambda: reference(**sample)) if isinstance(module, torch.nn.Module) else {}


def _engine_values(engine: Engine, sample: Sample, paths: Iterable[str]) -> Values:
    """Everything inside an engine, for each module: a runtime's graph doesn't know modules, and a value is known by its
    numbers."""
    intermediates = getattr(engine, "intermediates", None)
    values = list(intermediates(sample).values()) if intermediates else []
    return dict.fromkeys(paths, values)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


# ---------------------------------------------------------------------- experts
def _chosen(program: Program, sample: Sample, layer: str) -> Tensor | None:
    """The expert ids `[T, K]` of the MoE operator in a layer or around it, None without one."""
    found: list[Tensor] = []

    def watch(node: fx.Node, _value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = module_path(node)
        if node.target in (EXPERTS, MOE) and (f"{path}.".startswith(f"{layer}.") or f"{layer}.".startswith(f"{path}.")):
            found.append(choice(node, args, kwargs)[1])

    trace(program, sample, watch)
    return found[0] if len(found) == 1 else None


def wrong_tokens(want: Tensor, got: Tensor, tokens: int, tolerance: Tolerance) -> Tensor:
    """Which of the tokens `[T]` deviate by more than the tolerance."""
    error = (got.double().reshape(tokens, -1) - want.double().reshape(tokens, -1)).abs().amax(-1)
    return ~(error <= tolerance.deviation * want.double().std(correction=0))


def blame(ids: Tensor, wrong: Tensor) -> tuple[int, ...]:
    """The fewest experts, found greedily, that every wrong token went to; among equals, those that had the fewest right
    tokens.

    Args:
        ids: `[T, K]`. wrong: bool `[T]`.
    """
    blamed: list[int] = []
    left = wrong.clone()
    while left.any():
        hits = torch.bincount(ids[left].flatten())
        right = torch.bincount(ids[~wrong].flatten(), minlength=len(hits))[: len(hits)]
        score = hits.double() - right.double() / (right.sum() + 1)
        blamed.append(int(score.argmax()))
        left &= ~(ids == blamed[-1]).any(-1)
    return tuple(sorted(blamed))
