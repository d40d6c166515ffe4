"""What a long operation says about itself while it runs. The command line shows it; the library is silent."""

from __future__ import annotations


class Progress:
    """Stages of a compilation, each with bytes or counts done. This one says nothing; subclasses show it."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def advance(self, done: int, total: int, unit: str = "", what: str = "") -> None:
        """The running stage has done so much of its work; `unit` is "B" for bytes, `what` names the current piece."""

    def done(self, detail: str = "") -> None:
        """The running stage has ended; `detail` is its result in a few words."""
