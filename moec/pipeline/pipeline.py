"""Passes, and pipelines of them: parsed from text or TOML, checked around every step."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moec.errors import MoecError
from moec.pipeline.notation import make_pass, parse_calls
from moec.pipeline.passes import Context, Miss, Pass, Plan
from moec.program.operators import operators
from moec.program.program import AppliedPass, Program


class Hook:
    """Something that watches a pipeline: printing, dumping, timing and verifying are hooks."""

    def before(self, step: int, item: Pass, program: Program) -> None:
        """Called before a pass."""

    def after(self, step: int, item: Pass, program: Program, rewrites: int, seconds: float) -> None:
        """Called after a pass whose count was found honest; may raise to end the pipeline."""

    def lowered(self, name: str, text: Callable[[], str]) -> None:
        """Called after a step of the backend's lowering, which follows the pipeline; `text` writes down its graph."""


@dataclass(frozen=True)
class Pipeline:
    """Passes in order.

    Attributes:
        passes: the passes.
        optional: names that may change nothing without that being an error (a target's own passes).
    """

    passes: tuple[Pass, ...] = ()
    optional: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read `"upcycle(experts=8, top_k=2), fuse-moe"`; `str(pipeline)` prints it back. Raises M201, M202."""
        return cls(tuple(make_pass(name, config) for name, config in parse_calls(text)))

    @classmethod
    def of(cls, items: Iterable[dict[str, Any]]) -> Pipeline:
        """From plain data, as TOML's `[[pass]]` tables give it: each a `name` and the pass's fields. `to_plain` gives
        it back. Raises M201, M202."""
        return cls(tuple(_pass_of(item) for item in items))

    def to_plain(self) -> list[dict[str, Any]]:
        """As `of` reads it: a dict a pass, with the options that are not the defaults."""
        return [{"name": p.name, **p.given} for p in self.passes]

    def all_optional(self) -> Pipeline:
        """The same passes, each allowed to change nothing."""
        return Pipeline(self.passes, frozenset(p.name for p in self.passes))

    def __add__(self, other: Pipeline) -> Pipeline:
        return Pipeline(self.passes + other.passes, self.optional | other.optional)

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __str__(self) -> str:
        return ", ".join(str(p) for p in self.passes)

    def check(self, ran: Iterable[str] = (), calibrated: bool = False, quantized: bool = False) -> None:
        """Compare what every pass declares with what it is going to find.

        Args:
            ran: names of the passes that have run already.
            calibrated: whether there is a calibration text.
            quantized: whether a pass before these has quantized weights.

        Raises:
            MoecError: M201 when the order is wrong, M203 when a pass lacks a calibration text or the weights it needs,
                and for options that fit no model.
        """
        known = set(ran)
        changed = [*known]
        for item in self.passes:
            item.check_settings()
            if item.contract_of() == "new model" and changed:
                what = f"{item.name} makes a new model, which other passes work on"
                raise MoecError("M201", what, "the pipeline", f"put {item.name} first")
            changed += [item.name] if item.contract_of() != "new model" else []
            missing = next((name for name in item.after if name not in known), None)
            if missing is not None:
                what = f"{item.name} must run after {missing}"
                raise MoecError("M201", what, "the pipeline", f"put {missing} before {item.name}")
            if item.needs_calibration() and not calibrated:
                what = f"{item.name} needs a text to calibrate on"
                raise MoecError("M203", what, str(item), "name one with --calibration FILE")
            _check_weights(item, quantized)
            known |= {item.name, *item.prepared_by}
            quantized = quantized or item.quantizes

    def plan(self, program: Program, context: Context | None = None) -> list[Plan]:
        """What `run` would do, pass by pass, those that others are `prepared_by` among them; reads no calibration text.

        Raises:
            MoecError: as `run` does, where that does not depend on data.
        """
        context = replace(context or Context(), misses=[], calibration=None)
        ran, plans = [step.name for step in program.history], []
        self.check(ran, calibrated=True, quantized=context.unquantized is not None)
        for item, may_rest in self._in_order(ran):
            _check_weights(item, context.unquantized is not None)
            found = item.plan(program, context)
            if found.most == 0 and not may_rest:
                raise _changed_nothing(item, found.misses)
            if item.quantizes and found.most != 0:
                context.unquantized = context.unquantized or program
            found.program.history.append(AppliedPass(item.name, found.least, item.contract_of(), item.by_call))
            context.misses.extend(found.misses)
            plans.append(found)
            program = found.program
        return plans

    def run(
        self, program: Program, context: Context | None = None, hooks: Sequence[Hook] = ()
    ) -> tuple[Program, list[StepReport]]:
        """Apply all passes to a copy of the program.

        Returns the new program and a report a pass, those that others are `prepared_by` among them. Raises what `check`
        does, before any work; M103 when a named pass changed nothing, M701 when a pass's count disagrees with what it
        did, M702 when a pass left a malformed program.
        """
        program, context = program.clone(), context or Context()
        ran = [step.name for step in program.history]
        self.check(ran, context.calibration is not None, context.unquantized is not None)
        steps = enumerate(self._in_order(ran))
        return program, [self._step(n, item, program, context, hooks, may_rest) for n, (item, may_rest) in steps]

    def _in_order(self, ran: Iterable[str]) -> Iterator[tuple[Pass, bool]]:
        """The passes with those that prepare them, and whether each may change nothing."""
        known = set(ran)
        for item in self.passes:
            yield from ((make_pass(name, {}), True) for name in item.prepared_by if name not in known)
            known |= {item.name, *item.prepared_by}
            yield item, item.name in self.optional

    def _step(
        self, number: int, item: Pass, program: Program, context: Context, hooks: Sequence[Hook], may_rest: bool
    ) -> StepReport:
        for hook in hooks:
            hook.before(number, item, program)
        _check_weights(item, context.unquantized is not None)  # one that may rest did perhaps nothing
        own, untouched = context.given_to(item), program.clone() if item.quantizes else None
        wired, held = () if _is_ours(item) else operators(program), dict(program.weights)
        before, start = program.digest(), time.perf_counter()
        rewrites = item.apply(program, own)
        widths, contract = own.widths or _kept(item, program), item.contract_of()
        program.history.append(AppliedPass(item.name, rewrites, contract, item.by_call, widths))
        program.check()  # `finish` takes only what is well formed
        program.finish()
        made = any(held.get(name) is not weight for name, weight in program.weights.items())
        # where an exact one left weights alone, the model's own operators compute the same from them
        if wired and (made or contract != "exact") and wired != operators(program):
            program.history[-1] = replace(program.history[-1], rewires=True)
        seconds, digest = time.perf_counter() - start, program.digest()
        context.misses.extend(own.misses)
        if (digest != before) != (rewrites > 0):
            raise MoecError(
                "M701",
                f"{item.name} says {rewrites} rewrites, the program says otherwise",
                str(item),
                "report this with `moec compile --dump DIR`",
            )
        if rewrites == 0 and not may_rest:
            raise _changed_nothing(item, own.misses)
        if rewrites:
            context.unquantized = context.unquantized or untouched
        for hook in hooks:
            hook.after(number, item, program, rewrites, seconds)
        misses = [dataclasses.asdict(m) for m in own.misses]
        return StepReport(str(item), item.contract_of(), rewrites, seconds * 1e3, digest, misses, own.facts)


def _is_ours(item: Pass) -> bool:
    """Whether a pass is moec's own, so that its name says what it does to operators."""
    return type(item).__module__.startswith("moec.passes.")


def _check_weights(item: Pass, quantized: bool) -> None:
    """Raise M203 unless the weights are what the pass needs."""
    if item.needs_weights == "unquantized" and quantized:
        what = f"the weights are coarser already, and {item.name} judges them as they were"
        raise MoecError("M203", what, str(item), "put it before quantize")
    if item.needs_weights == "quantized" and not quantized:
        what = f"no pass before it made weights coarser, so {item.name} has nothing to make good"
        raise MoecError("M203", what, str(item), "put quantize before it")


def _kept(item: Pass, program: Program) -> tuple[int, ...]:
    """The widths that a pass works on which makes good for what came before it."""
    return tuple(w for s in program.history for w in s.widths) if item.needs_weights == "quantized" else ()


def _changed_nothing(item: Pass, misses: Sequence[Miss]) -> MoecError:
    found = "; ".join(f"{m.node}: {m.reason}" for m in misses[:3])
    return MoecError(
        "M103",
        f"{item.name} changed nothing: {found or 'nothing in the graph looks like what it rewrites'}",
        str(item),
        "leave the pass out, or see `moec inspect MODEL` for what the model holds",
    )


def _pass_of(table: Any) -> Pass:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise MoecError("M201", f"{table!r} names no pass", "[[pass]]", 'write [[pass]] and name = "…"')
    return make_pass(table["name"], {k: v for k, v in table.items() if k != "name"})


@dataclass(frozen=True)
class StepReport:
    """What one pass did, as plain data."""

    name: str
    contract: str
    rewrites: int
    time_ms: float
    digest: str
    misses: list[dict[str, str]]
    facts: dict[str, Any] = field(default_factory=dict)
