"""Engines that are timed beside each other: the name of each, and the memory that is its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moec.execution.engine import Engine
from moec.execution.memory import peak_rss_bytes, reset_peak, rss_bytes


@dataclass(frozen=True)
class Contender:
    """One engine of a benchmark.

    Attributes:
        name: of its row.
        engine: what runs.
        loaded_bytes: how much more was resident after it was loaded; None of one that came loaded.
    """

    name: str
    engine: Engine
    loaded_bytes: int | None = None


@dataclass(frozen=True)
class Memory:
    """What is resident in the machine's memory for one engine, in bytes. Memory of a GPU is not in it.

    Attributes:
        loaded_bytes: what loading added; None of an engine that came loaded. Mapped files count where they were read.
        running_bytes: what the peak of the warm-up added to that.
        peak_bytes: the peak of the whole process in the warm-up, every engine that is loaded in it.
    """

    loaded_bytes: int | None
    running_bytes: int
    peak_bytes: int

    @property
    def own_bytes(self) -> int | None:
        """What the engine needs: loaded and running; None where the first is not known."""
        return None if self.loaded_bytes is None else self.loaded_bytes + self.running_bytes


def contenders(engines: Sequence[Engine | Contender]) -> list[Contender]:
    """Each with a name that no other has; an engine that came loaded is known by its own."""
    found = [e if isinstance(e, Contender) else Contender(e.name, e) for e in engines]
    return [replace(c, name=name) for c, name in zip(found, row_names([c.name for c in found]), strict=True)]


def loaded(name: str, load: Callable[[], Engine]) -> Contender:
    """Load an engine, and see what that adds to the resident memory."""
    before = rss_bytes()
    engine = load()
    return Contender(name, engine, max(0, rss_bytes() - before))


def row_names(names: Sequence[str | Path]) -> list[str]:
    """A name for each row, as the user wrote it, without a slash at its end; numbers behind those that come
    again."""
    plain = [str(Path(name)) for name in names]
    found: list[str] = []
    for name in plain:
        again = sum(name == other for other in plain[: len(found)])
        found.append(f"{name} ({again + 1})" if again else name)
    return found


def warmed_up(contender: Contender, run: Callable[[], object], times: int) -> Memory:
    """Run untimed, once at least, and see how far the peak of resident memory rises."""
    before = rss_bytes() if reset_peak() else peak_rss_bytes()
    for _ in range(max(1, times)):
        run()
    peak = peak_rss_bytes()
    return Memory(contender.loaded_bytes, max(0, peak - before), peak)
