"""A bound that an engine's own manifest records, and that asks for less than moec does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecordedBound:
    """A bound that a manifest records and that asks for less than moec does.

    Attributes:
        name: of the setting. recorded, used: its value there, and what was taken in its place, as texts.
        flag: the options of `moec verify` and `moec build` that accept it; empty where there are none.
    """

    name: str
    recorded: str
    used: str
    flag: str = ""

    @property
    def setting(self) -> str:
        """What it belongs to: `name`, or `target` for an option of one."""
        return self.name.split()[0]

    def __str__(self) -> str:
        return f"{self.name} {self.recorded} ({self.used} by default)"
