"""Passes, and pipelines of them: parsed from text or TOML, checked around every step."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from moec.errors import MoecError
from moec.pipeline.notation import make_pass, parse_calls
from moec.pipeline.passes import Context, Pass
from moec.program.program import Program, Step


class Hook:
    """Something that watches a pipeline: printing, dumping, timing and verifying are hooks."""

    def before(self, step: int, item: Pass, program: Program) -> None:
        """Called before a pass."""

    def after(self, step: int, item: Pass, program: Program, rewrites: int, seconds: float) -> None:
        """Called after a pass whose count was found honest; may raise to end the pipeline."""


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

    def run(
        self, program: Program, context: Context | None = None, hooks: Sequence[Hook] = ()
    ) -> tuple[Program, list[StepReport]]:
        """Apply all passes to a copy of the program.

        Returns the new program and a report a pass, those that others are `prepared_by` among them. Raises M103 when a
        named pass changed nothing, M701 when a pass's count disagrees with what it did, M702 when a pass left a
        malformed program, M201 when the order is wrong.
        """
        program, context = program.clone(), context or Context()
        reports: list[StepReport] = []
        for item in self.passes:
            missing = [name for name in item.after if not _has_run(name, program)]
            if missing:
                raise MoecError(
                    "M201",
                    f"{item.name} must run after {missing[0]}",
                    "the pipeline",
                    f"put {missing[0]} before {item.name}",
                )
            for name in item.prepared_by:
                if not _has_run(name, program):
                    reports.append(
                        self._step(len(reports), make_pass(name, {}), program, context, hooks, may_rest=True)
                    )
            reports.append(self._step(len(reports), item, program, context, hooks, item.name in self.optional))
        return program, reports

    def _step(
        self, number: int, item: Pass, program: Program, context: Context, hooks: Sequence[Hook], may_rest: bool
    ) -> StepReport:
        for hook in hooks:
            hook.before(number, item, program)
        context.current, context.facts, already = item.name, {}, len(context.misses)
        before, start = program.digest(), time.perf_counter()
        rewrites = item.apply(program, context)
        program.history.append(Step(item.name, rewrites, item.contract_of(), item.by_call))
        program.check()  # `finish` takes only what is well formed
        program.finish()
        seconds = time.perf_counter() - start
        digest, misses = program.digest(), context.misses[already:]
        if (digest != before) != (rewrites > 0):
            raise MoecError(
                "M701",
                f"{item.name} says {rewrites} rewrites, the program says otherwise",
                str(item),
                "report this with `moec compile --dump DIR`",
            )
        if rewrites == 0 and not may_rest:
            why = (
                "; ".join(f"{m.node}: {m.reason}" for m in misses[:3])
                or "nothing in the graph looks like what it rewrites"
            )
            raise MoecError(
                "M103",
                f"{item.name} changed nothing: {why}",
                str(item),
                "leave the pass out, or see `moec inspect MODEL` for what the model holds",
            )
        for hook in hooks:
            hook.after(number, item, program, rewrites, seconds)
        return StepReport(
            str(item),
            item.contract_of(),
            rewrites,
            seconds * 1e3,
            digest,
            [dataclasses.asdict(m) for m in misses],
            context.facts,
        )


def _pass_of(table: Any) -> Pass:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise MoecError("M201", f"{table!r} names no pass", "[[pass]]", 'write [[pass]] and name = "…"')
    return make_pass(table["name"], {k: v for k, v in table.items() if k != "name"})


def _has_run(name: str, program: Program) -> bool:
    return any(step.name == name for step in program.history)


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
