"""Passes, and pipelines of them: parsed from text or TOML, checked around every step."""

from __future__ import annotations

import ast
import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import fx

from moec import registry
from moec.errors import MoecError
from moec.pipeline.calibration import Calibration
from moec.program.program import Program, Step

Contract = Literal["exact", "approximate"]


@dataclass(frozen=True)
class Miss:
    """Why a rewrite did not fire: the node, its source line and the reason."""

    pass_name: str
    node: str
    reason: str
    source_line: str = ""


@dataclass
class Context:
    """What a pass may know beside its own configuration.

    Attributes:
        seed: for anything random; equal seeds make equal programs.
        misses: why near-matches were left alone; filled by `miss`.
        facts: what the pass that runs now has to say of its work, as plain data for the report.
        calibration: text for passes that need data; None when none was given.
        unquantized: the program as it was before the first pass that made its weights coarser; None before that.
    """

    seed: int = 0
    misses: list[Miss] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    current: str = ""
    calibration: Calibration | None = None
    unquantized: Program | None = None

    def require_calibration(self) -> Calibration:
        """The text for a pass that cannot work without. Raises M203 when none was given."""
        if self.calibration is None:
            raise MoecError("M203", f"{self.current} needs a text to calibrate on", self.current, "name one with --calibration FILE")
        return self.calibration

    def miss(self, node: fx.Node, reason: str) -> None:
        """Record that `node` looked like a match and was left alone."""
        trace = (node.meta.get("stack_trace") or "").strip().splitlines()
        self.misses.append(Miss(self.current, node.name, reason, trace[-2].strip() if len(trace) > 1 else ""))


@dataclass(frozen=True)
class Pass(ABC):
    """One rewrite of a program. A frozen dataclass: its fields are its whole configuration, and it holds no state.

    Class attributes:
        contract: `exact` passes keep the function to floating-point tolerance; `approximate` ones carry an error budget.
        after: names of passes that must have run before this one.
        prepared_by: names of passes whose work this one looks for. The pipeline runs those that have not run yet, with their default
            options, just before it; they may find nothing, and are hooked, checked and reported like any other.
        by_call: whether the pass makes what a model says of a token depend on what else comes in the same call, so that a text in
            chunks and in one go are no longer the same.
    """

    contract: ClassVar[Contract] = "exact"
    after: ClassVar[tuple[str, ...]] = ()
    prepared_by: ClassVar[tuple[str, ...]] = ()
    by_call: ClassVar[bool] = False

    @abstractmethod
    def apply(self, program: Program, context: Context) -> int:
        """Rewrite in place; returns the number of rewrites made. Raises M203 on a configuration that does not fit the model."""

    def contract_of(self) -> Contract:
        """The contract of this configuration; differs from the class's where an option makes a pass approximate."""
        return self.contract

    def needs_calibration(self) -> bool:
        """Whether this configuration cannot work without a calibration text; asked before any work."""
        return False

    def outline(self) -> Pass | None:
        """This pass without data and without work, whose program has the form that this one's will have: a target is asked with it, before
        anything costs time, whether it takes what comes out. None where a target need not be asked."""
        return None

    @property
    def name(self) -> str:
        """The pass's name on the command line: `FuseMoe` is `fuse-moe`."""
        return kebab(type(self).__name__)

    def __str__(self) -> str:
        given = [f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return self.name + (f"({', '.join(given)})" if given else "")


def kebab(name: str) -> str:
    """`FuseMoe` -> `fuse-moe`."""
    return "".join("-" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))


# ---------------------------------------------------------------------- names
def make_pass(name: str, config: dict[str, Any]) -> Pass:
    """A pass from its name and fields. Raises M202 for an unknown name, M201 for an unknown field or a word where none belongs."""
    cls: type[Pass] = registry.find("passes", name)
    known = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    for key, value in config.items():
        if key not in known:
            raise MoecError("M201", f"{name} has no option {key!r}", f"{name}(…)", registry.did_you_mean(key, list(known)))
        if isinstance(value, _Word) and not known[key].startswith("str"):
            raise MoecError("M201", f"{key}={value} is not a value", f"{name}(…)", f"{key} is {known[key]}")
    return cls(**{k: str(v) if isinstance(v, _Word) else v for k, v in config.items()})


class _Word(str):
    """Text that was written without quotes."""


# ---------------------------------------------------------------------- pipelines
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
        return cls(tuple(make_pass(name, config) for name, config in _parse_calls(text)))

    @classmethod
    def of(cls, items: Iterable[dict[str, Any]]) -> Pipeline:
        """From plain data, as TOML's `[[pass]]` tables give it: each a `name` and the pass's fields."""
        return cls(tuple(make_pass(str(i["name"]), {k: v for k, v in i.items() if k != "name"}) for i in items))

    def all_optional(self) -> Pipeline:
        """The same passes, each allowed to change nothing."""
        return Pipeline(self.passes, frozenset(p.name for p in self.passes))

    def __add__(self, other: Pipeline) -> Pipeline:
        return Pipeline(self.passes + other.passes, self.optional | other.optional)

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __str__(self) -> str:
        return ", ".join(str(p) for p in self.passes)

    def run(self, program: Program, context: Context | None = None, hooks: Sequence[Hook] = ()) -> tuple[Program, list[StepReport]]:
        """Apply all passes to a copy of the program.

        Returns the new program and a report a pass, those that others are `prepared_by` among them. Raises M103 when a named pass
        changed nothing, M701 when a pass's count disagrees with what it did, M702 when a pass left a malformed program, M201 when the
        order is wrong.
        """
        program, context = program.clone(), context or Context()
        reports: list[StepReport] = []
        for item in self.passes:
            missing = [name for name in item.after if not _has_run(name, program)]
            if missing:
                raise MoecError("M201", f"{item.name} must run after {missing[0]}", "the pipeline", f"put {missing[0]} before {item.name}")
            for name in item.prepared_by:
                if not _has_run(name, program):
                    reports.append(self._step(len(reports), make_pass(name, {}), program, context, hooks, may_rest=True))
            reports.append(self._step(len(reports), item, program, context, hooks, item.name in self.optional))
        return program, reports

    def _step(self, number: int, item: Pass, program: Program, context: Context, hooks: Sequence[Hook], may_rest: bool) -> StepReport:
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
                "M701", f"{item.name} says {rewrites} rewrites, the program says otherwise", str(item), "report this with `moec compile --dump DIR`"
            )
        if rewrites == 0 and not may_rest:
            why = "; ".join(f"{m.node}: {m.reason}" for m in misses[:3]) or "nothing in the graph looks like what it rewrites"
            raise MoecError(
                "M103", f"{item.name} changed nothing: {why}", str(item), "leave the pass out, or see `moec inspect MODEL` for what the model holds"
            )
        for hook in hooks:
            hook.after(number, item, program, rewrites, seconds)
        return StepReport(str(item), item.contract_of(), rewrites, seconds * 1e3, digest, [dataclasses.asdict(m) for m in misses], context.facts)


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


def _parse_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """`"a(x=1, y=z), b-c"` -> [("a", {"x": 1, "y": "z"}), ("b-c", {})]: Python's own grammar, with dashes in names and words as text."""
    bad = MoecError("M201", f"cannot read the pipeline {text!r}", "the pipeline", 'write "pass(option=value, …), other-pass"')
    try:
        tree = ast.parse(f"[{_underscore_names(text)}]", mode="eval").body
    except SyntaxError:
        raise bad from None
    calls = []
    for item in tree.elts if isinstance(tree, ast.List) else []:
        call = item if isinstance(item, ast.Call) else ast.Call(item, [], [])
        if not isinstance(call.func, ast.Name) or call.args:
            raise bad
        try:
            config = {k.arg or "": _Word(k.value.id) if isinstance(k.value, ast.Name) else ast.literal_eval(k.value) for k in call.keywords}
        except ValueError:
            raise bad from None
        calls.append((call.func.id.replace("_", "-"), config))
    return calls


def _underscore_names(text: str) -> str:
    """Dashes to underscores outside parentheses, where only pass names stand."""
    depth, out = 0, []
    for c in text:
        depth += (c == "(") - (c == ")")
        out.append("_" if c == "-" and depth == 0 else c)
    return "".join(out)
