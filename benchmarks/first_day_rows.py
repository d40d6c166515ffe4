"""What a stage of the first day finds: rows, in one file that grows as it goes, so that a second run goes on there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

Case = TypeVar("Case")
# how a stage can stand; only of `done` a second run leaves it alone
DONE, WRONG, LATE, BROKEN, ABSENT = "done", "wrong", "late", "broken", "absent"


class Wrong(Exception):
    """The first wrong number: its row is the last of the file."""


class Late(Exception):
    """The stage's time is over; the case that was to come."""


class Absent(Exception):
    """Something that the stage needs is not on this machine, and what that is."""


class Rows:
    """The rows of one stage, in `folder/STAGE.json`.

    Args:
        stage: its name. folder: of the results.
        seconds: after which no case is begun.
        setting: facts that earlier rows must have been found under, such as `dry`; other files are written over.
    """

    def __init__(self, stage: str, folder: Path, seconds: float = 1e9, **setting: Any) -> None:
        self.stage, self.path, self.setting = stage, folder / f"{stage}.json", setting
        self._end, self.rows, self.done = time.monotonic() + seconds, list[dict[str, Any]](), list[str]()
        self._case, self.notes = "", dict[str, Any]()
        earlier = read(self.path)
        if earlier.get("setting") == setting:
            self.done, self.notes = earlier["cases"], earlier["notes"]
            self.rows = [r for r in earlier["rows"] if r["case"] in self.done]

    def todo(self, cases: Iterable[Case], name: Callable[[Case], str] = str) -> Iterator[Case]:
        """Those that no earlier run has ended. Raises Late where the time is over before the next begins."""
        for case in cases:
            self._case = name(case)
            if self._case in self.done:
                continue
            if time.monotonic() > self._end:
                raise Late(self._case)
            self.rows = [r for r in self.rows if r["case"] != self._case]
            yield case
            self.done.append(self._case)
            self.write(LATE)

    def figure(self, who: str, value: float, unit: str, **more: Any) -> None:
        """A number that is merely told. `more`: entries of its row."""
        self.rows.append({"case": self._case, "who": who, "value": value, "unit": unit, **more})

    def aim(self, who: str, value: float, unit: str, at_least: float) -> None:
        """A number that ought to reach something: missed, it is told, and stops nothing."""
        self.figure(who, value, unit, aim=at_least, met=bool(value >= at_least))

    def check(self, who: str, value: float, unit: str, at_most: float) -> None:
        """A number that must be within its bound; NaN is not, and an infinite bound is none. Raises Wrong."""
        ok = bool(value <= at_most < float("inf"))
        self.figure(who, value, unit, bound=at_most, ok=ok)
        if not ok:
            raise Wrong(f"{self.stage}: {self._case}: {who}: {value:.3g} {unit}, at most {at_most:.3g} is allowed")

    def refuse(self, who: str, reason: str) -> None:
        """What could not take part, and why."""
        self.figure(who, float("nan"), "left out", reason=reason[:300])

    def write(self, state: str, reason: str = "") -> None:
        """The file as it is now, replaced at once."""
        facts = {"stage": self.stage, "state": state, "reason": reason, "setting": self.setting, "cases": self.done}
        new = self.path.with_suffix(".new")
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps({**facts, "notes": self.notes, "rows": self.rows}, indent=1) + "\n")
        new.replace(self.path)


def read(path: Path) -> dict[str, Any]:
    """A stage's file; nothing where there is none, or one that was cut off."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if {"stage", "state", "setting", "cases", "rows", "notes"} <= found.keys() else {}


def run(rows: Rows, work: Callable[[Rows], None]) -> tuple[str, str]:
    """Do a stage's work and write how it ended: the state, and the reason where it is not done."""
    state, reason = DONE, ""
    try:
        work(rows)
    except Wrong as error:
        state, reason = WRONG, str(error)
    except Late as error:
        state, reason = LATE, f"no time was left for {error}"
    except Absent as error:
        state, reason = ABSENT, str(error)
    except Exception as error:  # what a GPU does for the first time may end in anything
        state, reason = BROKEN, f"{rows._case}: {type(error).__name__}: {' '.join(str(error).split())[:600]}"
    rows.write(state, reason)
    return state, reason
