"""A check: one thing that a proof looks at, with its verdict, its figures, and the error that a failure raises."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import msgspec

from moec.errors import MoecError
from moec.proof.subject import Subject
from moec.proof.trial import Trial


@dataclass(frozen=True)
class Figure:
    """One row of a check's table.

    Attributes:
        name: what was looked at: an output, a block, a size.
        values: column -> text.
        ok: whether this row is acceptable; None for a limitation that is reported and fails nothing.
    """

    name: str
    values: Mapping[str, str] = field(default_factory=dict)
    ok: bool | None = True


class Check(ABC):
    """One part of a `Verification`. A subclass is a frozen dataclass of plain data; a new metric is one such class.

    Attributes:
        name: of the check in manifests, JUnit and `--json`; unique.
        title: what it asks, as a heading.
    """

    name: ClassVar[str]
    title: ClassVar[str]

    @classmethod
    @abstractmethod
    def measure(cls, trial: Trial) -> Self | None:
        """Look at an engine; None where there is nothing to look at, so that the check is left out."""

    @abstractmethod
    def error(self) -> MoecError | None:
        """What `require` raises, with a way out; None when all is well."""

    @abstractmethod
    def figures(self) -> tuple[Figure, ...]:
        """The rows of the check's table; one at least is not ok exactly when the check is not."""

    @abstractmethod
    def __str__(self) -> str:
        """The figures in one line."""

    @property
    def note(self) -> str:
        """What its figures mean, for somebody who reads them the first time; may be empty."""
        return ""

    def turned_by(self, subject: Subject) -> tuple[str, ...]:
        """Of a check that failed: the bounds that would let it pass if they were wider, by their settings' names; empty
        where no bound would."""
        return ()

    @property
    def ok(self) -> bool:
        """Whether the check is passed."""
        return self.error() is None

    def require(self) -> None:
        """Raise `error()` unless the check is passed."""
        if (error := self.error()) is not None:
            raise error

    def to_dict(self) -> dict[str, Any]:
        """Plain data. The verdict is there to be read; `from_dict` finds it anew from the figures."""
        return {"ok": self.ok, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The check that `to_dict` wrote. Raises `msgspec.ValidationError` where the data has another form."""
        return msgspec.convert(data, cls, strict=False)  # not strict: JSON has no infinity, so it comes as text
