"""A pass: a rewrite of a program that signs a contract."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import fx

from moec.errors import MoecError
from moec.pipeline.calibration import Calibration
from moec.pipeline.option_values import freeze, write_value
from moec.program.program import Program

Contract = Literal["exact", "approximate", "new model"]
Weights = Literal["any", "unquantized", "quantized"]


@dataclass(frozen=True)
class Miss:
    """Why a rewrite did not fire: the node, its source line and the reason."""

    pass_name: str
    node: str
    reason: str
    source_line: str = ""


@dataclass
class Context:
    """What a pass may know beside its own configuration: what it declares that it needs, and nothing else.

    Attributes:
        seed: for anything random; equal seeds make equal programs.
        misses: why near-matches were left alone; filled by `miss`.
        facts: what the pass has to say of its work, as plain data for the report.
        current: the pass's name.
        calibration: text, for a pass that `needs_calibration`; None when none was given.
        unquantized: the program as it was before the first pass that `quantizes`, for a pass that needs quantized
            weights; None before that.
        max_kl: the mean KL divergence to the untouched model that the user allows, in nats a token; None for the
            default. The proof decides; a pass may choose by it how much it changes.
        earlier: the misses of the passes that this one is `after` or `prepared_by`.
        widths: in bits, of the grids that the pass put weights on; the pass says so, and the proof's budget follows.
    """

    seed: int = 0
    misses: list[Miss] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    current: str = ""
    calibration: Calibration | None = None
    unquantized: Program | None = None
    max_kl: float | None = None
    earlier: tuple[Miss, ...] = ()
    widths: tuple[int, ...] = ()

    def given_to(self, item: Pass) -> Context:
        """What of the context of a whole run one pass gets: a pass that forgets to declare a need meets None."""
        named = {*item.after, *item.prepared_by}
        return Context(
            self.seed,
            current=item.name,
            calibration=self.calibration if item.needs_calibration() else None,
            unquantized=self.unquantized if item.needs_weights == "quantized" else None,
            max_kl=self.max_kl,
            earlier=tuple(m for m in self.misses if m.pass_name in named),
        )

    def require_calibration(self) -> Calibration:
        """The text for a pass that cannot work without. Raises M203 when none was given."""
        if self.calibration is None:
            raise MoecError(
                "M203", f"{self.current} needs a text to calibrate on", self.current, "name one with --calibration FILE"
            )
        return self.calibration

    def miss(self, node: fx.Node, reason: str) -> None:
        """Record that `node` looked like a match and was left alone."""
        trace = (node.meta.get("stack_trace") or "").strip().splitlines()
        self.misses.append(Miss(self.current, node.name, reason, trace[-2].strip() if len(trace) > 1 else ""))


@dataclass(frozen=True)
class Plan:
    """What a pass would do to a program.

    Attributes:
        name: the pass with its options.
        least, most: how many rewrites it would make; they differ only where data decides, and `most` is None where
            nothing can be said.
        program: the program in the form that it would have: operators, shapes and dtypes. What is in weights that data
            decides is left open.
        misses: what would be left alone and why, as far as that does not depend on data.
    """

    name: str
    least: int
    most: int | None
    program: Program = field(repr=False)
    misses: tuple[Miss, ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """One rewrite of a program. A frozen dataclass: its fields are its whole configuration, and it holds no state. They
    hold plain data, so that `str` of a pass reads back as the same pass; lists become tuples.

    A pass declares what it needs; the pipeline checks that before any work, and gives nothing that is not declared.

    Class attributes:
        contract: `exact` passes keep the function to floating-point tolerance; `approximate` ones carry an error
            budget; after one that makes a `new model` that is what everything else is compared with, so it comes first.
        after: names of passes that must have run before this one.
        prepared_by: names of passes whose work this one looks for. The pipeline runs those that have not run yet, with
            their default options, just before it; they may find nothing, and are hooked, checked and reported like any
            other.
        needs_weights: `unquantized` when no pass before it may quantize, `quantized` when one must, else `any`.
        quantizes: whether it makes weights coarser.
        by_call: whether it makes what a model says of a token depend on what else comes in the same call, so that a
            text in chunks and in one go are no longer the same.
    """

    contract: ClassVar[Contract] = "exact"
    after: ClassVar[tuple[str, ...]] = ()
    prepared_by: ClassVar[tuple[str, ...]] = ()
    needs_weights: ClassVar[Weights] = "any"
    quantizes: ClassVar[bool] = False
    by_call: ClassVar[bool] = False

    @abstractmethod
    def apply(self, program: Program, context: Context) -> int:
        """Rewrite in place; returns the number of rewrites made. Raises M203 on a configuration that does not fit the
        model."""

    def contract_of(self) -> Contract:
        """The contract of this configuration; differs from the class's where an option makes a pass approximate."""
        return self.contract

    def check_settings(self) -> None:  # noqa: B027
        """Raise M203 for options that fit no model at all; asked before the model is captured."""

    def check_calibration(self, calibration: Calibration) -> None:  # noqa: B027
        """Raise M203 for a calibration text that is of no use to this configuration; asked before the model is
        captured."""

    def needs_calibration(self) -> bool:
        """Whether this configuration cannot work without a calibration text."""
        return False

    def other_models(self) -> tuple[str, ...]:
        """The models that it reads beside the program, as `Source.alike` opens them."""
        return ()

    def without_data(self) -> Pass | None:
        """This pass without data and without long work, whose program has the form that this one's will have. None
        where there is no such pass; itself where it needs no data."""
        return None if self.needs_calibration() else self

    def milder(self) -> tuple[Pass, ...]:
        """This pass with other settings that change less, the smallest step first, for the advice where it changed too
        much. None for a pass that knows no such settings."""
        return ()

    def plan(self, program: Program, context: Context) -> Plan:
        """What `apply` would do, without doing it: neither the program nor the context changes, and no data is read.

        By default `without_data` rewrites a copy, which costs little because weights are lazy. Override it where the
        number of rewrites depends on data.

        Raises:
            MoecError: M203 as `apply` does.
        """
        copy, stand_in, own = program.clone(), self.without_data(), context.given_to(self)
        if stand_in is None:
            return Plan(str(self), 0, None, copy)
        rewrites = stand_in.apply(copy, own)
        copy.check()
        copy.finish()
        return Plan(str(self), rewrites, rewrites, copy, tuple(own.misses))

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            object.__setattr__(self, option.name, freeze(getattr(self, option.name)))

    @property
    def name(self) -> str:
        """The pass's name on the command line: `FuseMoe` is `fuse-moe`."""
        return kebab(type(self).__name__)

    @property
    def given(self) -> dict[str, Any]:
        """The options that are not the defaults."""
        values = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        return {k: v for k, (v, default) in values.items() if type(v) is not type(default) or v != default}

    def __str__(self) -> str:
        options = [f"{key}={write_value(value)}" for key, value in self.given.items()]
        return self.name + (f"({', '.join(options)})" if options else "")


def kebab(name: str) -> str:
    """`FuseMoe` -> `fuse-moe`."""
    return "".join("-" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))
