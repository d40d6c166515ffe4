"""What a long operation says about itself while it runs. The command line shows it; the library is silent."""

from __future__ import annotations

import warnings
from collections.abc import Callable


class Progress:
    """Stages of a compilation, each with bytes or counts done. This one says nothing; subclasses show it."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def advance(self, done: int, total: int, unit: str = "", what: str = "") -> None:
        """The running stage has done so much of its work; `unit` is "B" for bytes, `what` names the current piece."""

    def step(self, name: str, text: Callable[[], str]) -> None:
        """A backend has taken one step of its lowering; `text` writes down the graph as it now is, until the next."""

    def detail(self, line: str, level: int = 1) -> None:
        """More of the running stage for who asks: level 1 for what it found, 2 for its steps and their times."""

    def warn(self, line: str) -> None:
        """Something that its user has to know, whether or not progress is shown: a Python warning, unless told else."""
        warnings.warn(line, stacklevel=2)

    def done(self, detail: str = "") -> None:
        """The running stage has ended; `detail` is its result in a few words."""
