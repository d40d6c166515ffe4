"""Check: what the capture assumed of its inputs, the engine asks of every call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.program.conditions import Assumptions, Condition, Values
from moec.proof.checks.check import Check, Figure
from moec.proof.trial import Trial


@dataclass(frozen=True)
class Assumed(Check):
    """The conditions under which the engine is the model.

    Attributes:
        engine: its name.
        sizes: conditions on the sizes of the inputs.
        values: input, least and largest value, where the model looks it up in a table.
        forgotten: those that the capture states and the engine does not ask for.
    """

    engine: str
    sizes: tuple[str, ...]
    values: tuple[tuple[str, int, int], ...]
    forgotten: tuple[str, ...] = ()

    name: ClassVar[str] = "conditions"
    title: ClassVar[str] = "What the engine was made for"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        engine, stated = trial.engine, trial.subject.captured.assumptions
        if stated == Assumptions() and not engine.conditions and not engine.values:
            return None
        names = {i.name for i in engine.inputs}
        asked = {*map(str, engine.conditions), *map(str, engine.values)}
        wanted = [*map(str, stated.sizes), *(str(v) for v in stated.values if v.name in names)]
        values = tuple((v.name, v.low, v.high) for v in engine.values)
        forgotten = tuple(text for text in wanted if text not in asked)
        return cls(engine.name, tuple(c.text for c in engine.conditions), values, forgotten)

    @property
    def assumptions(self) -> Assumptions:
        """As an engine takes them. Raises ValueError for a text that is no condition."""
        return Assumptions(tuple(map(Condition, self.sizes)), tuple(Values(*v) for v in self.values))

    def error(self) -> MoecError | None:
        if not self.forgotten:
            return None
        what = f"{self.engine} takes inputs that it was not made for: it does not ask for {self.forgotten[0]}"
        return MoecError("M101", what, self.engine, "compile it again; its files were changed, or are of an older moec")

    @property
    def note(self) -> str:
        return "The engine refuses any other input. Software that loads its file without moec is not kept from it."

    def figures(self) -> tuple[Figure, ...]:
        values = (f"{low} <= {name} <= {high}" for name, low, high in self.values)
        asked = [Figure(text, {"asked of": "every call"}) for text in (*self.sizes, *values)]
        return (*asked, *(Figure(text, {"asked of": "no call"}, False) for text in self.forgotten))

    def __str__(self) -> str:
        return ", ".join(figure.name for figure in self.figures())
