"""A check that another package made and that is not here: its figures can be shown, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from moec.errors import MoecError
from moec.proof.checks.check import Check, Figure
from moec.proof.trial import Trial


@dataclass(frozen=True)
class RecordedCheck(Check):
    """What a manifest says of a check whose class is not here.

    Attributes:
        name: of the check.
        passed: the verdict that was recorded; nobody here can find it anew. None in a later proof, which believes none.
        data: what was recorded.
    """

    name: str  # type: ignore[misc]  # of each instance, where other checks have one of their class
    passed: bool | None
    data: dict[str, Any] = field(default_factory=dict)

    title: ClassVar[str] = "A check of another package"

    @classmethod
    def of(cls, name: str, data: Mapping[str, Any]) -> Self:
        """From a manifest's entry. One without a verdict has not passed."""
        return cls(name, data.get("ok") is True, dict(data))

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        return None

    def lost(self) -> Self:
        """The same in a later proof, which would have to make the check itself."""
        return replace(self, passed=None)

    def error(self) -> MoecError | None:
        if self.passed:
            return None
        if self.passed is None:
            what = f"the check {self.name!r} cannot be made here, and what the manifest says of it proves nothing"
            fix = "install the package that made it, or compile anew without"
            return MoecError("M111", what, "the manifest", fix)
        return MoecError("M101", f"the check {self.name!r} failed", "the manifest", "install the package that made it")

    def figures(self) -> tuple[Figure, ...]:
        values = {key: str(value) for key, value in self.data.items() if key != "ok"}
        return (Figure("as recorded", values, bool(self.passed)),)

    def to_dict(self) -> dict[str, Any]:
        return self.data

    def __str__(self) -> str:
        return f"as recorded: {'passed' if self.data.get('ok') is True else 'failed'}; its package is not here"
