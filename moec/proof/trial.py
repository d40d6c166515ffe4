"""An engine before its checks: what several of them need is found once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeVar

from moec.execution.engine import Engine
from moec.execution.streaming import StreamingEngine
from moec.program.signature import Sample, sizes_of
from moec.proof.subject import Subject

T = TypeVar("T")
STREAMED_SIZES = 2  # where every run reads all weights anew


class Trial:
    """One engine, and what is to be proven of it.

    Attributes:
        subject: what the engine has to equal, and how closely.
        engine: what is to be proven.
        most_sizes: how many of the verification sizes are looked at, all when None.
        searches_wide: whether a search for experts may take inputs that are larger than these.
    """

    def __init__(self, subject: Subject, engine: Engine, most_sizes: int | None = None) -> None:
        self.subject, self.engine, self.searches_wide = subject, engine, most_sizes is None
        self.most_sizes = STREAMED_SIZES if most_sizes is None and subject.streamed else most_sizes
        self._found: dict[Any, Any] = {}

    @cached_property
    def reference(self) -> Engine:
        """What the engine is compared with, opened once."""
        return self.subject.open_reference()

    @cached_property
    def untouched(self) -> Engine:
        """The model as it was captured, whatever the engine is compared with."""
        return self.reference if self.subject.against is None else StreamingEngine(self.subject.captured)

    def once(self, find: Callable[[Trial], T]) -> T:
        """`find(trial)`, run by the first check that asks; others get the same result."""
        if find not in self._found:
            self._found[find] = find(self)
        found: T = self._found[find]
        return found

    def holds(self, sample: Sample) -> bool:
        """Whether the engine, and what it is compared with, are made for the sizes of a sample."""
        return self.holds_sizes(sizes_of(self.subject.source.inputs, sample))

    def holds_sizes(self, sizes: Mapping[str, int]) -> bool:
        """Whether the engine, and what it is compared with, are made for these sizes of the dynamic dimensions."""
        return self.engine.holds(sizes) and self.reference.holds(sizes)
