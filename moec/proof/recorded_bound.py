"""A bound that an engine's own manifest records, and that asks for less than moec does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecordedBound:
    """A bound that a manifest records and that asks for less than moec does.

    Attributes:
        name: of the setting. recorded, used: its value there, and what was taken in its place, as texts.
        flag: the option of `moec verify` that accepts it; empty where there is none.
    """

    name: str
    recorded: str
    used: str
    flag: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.recorded} ({self.used} by default)"
