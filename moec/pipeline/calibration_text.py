"""Which text the passes that need data may use, and how much of it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moec.errors import MoecError

_PART = re.compile(r"(?P<name>[A-Za-z_][\w.-]*)=(?P<file>.+)")


@dataclass(frozen=True)
class CalibrationText:
    """Which text, and how much of it.

    Attributes:
        file: its name, see `moec.text.corpus.read_corpus`; or several texts with names, `code=a.txt,law=b.txt`.
        tokens: how much of it a pass may use, of each where there are several; 0 for all.
        window: tokens that the model sees at a time; never more than its context.
    """

    file: str
    tokens: int = 16384
    window: int = 256

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.window < 2:
            raise MoecError(
                "M201",
                f"windows of {self.window} tokens, {self.tokens} in all",
                "--calibration-tokens",
                "0 is all of the text",
            )
        twice = [name for name, count in Counter(name for name, _ in self._named).items() if count > 1]
        if twice:
            what, fix = f"two texts are called {twice[0]}", "give each a name of its own: code=a.txt,law=b.txt"
            raise MoecError("M201", what, "--calibration", fix)

    @property
    def parts(self) -> dict[str, str]:
        """The files by the names of their texts; empty for one text without a name, and for a file whose own name looks
        like that."""
        return dict(self._named)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are read."""
        return tuple(self.parts.values()) or (self.file,)

    @property
    def _named(self) -> list[tuple[str, str]]:
        found = [_PART.fullmatch(part) for part in self.file.split(",")]
        if not all(found) or Path(self.file).is_file():
            return []
        return [(match["name"], match["file"]) for match in found if match]

    @classmethod
    def of(cls, file: Any, tokens: int | None) -> CalibrationText | None:
        """From options that may be None, meaning the default; None without a text. Raises M201 for a number without
        one."""
        if file is None:
            if tokens is not None:
                raise MoecError(
                    "M201",
                    "--calibration-tokens says nothing without a text",
                    "--calibration-tokens",
                    "name one with --calibration FILE",
                )
            return None
        return cls(str(file)) if tokens is None else cls(str(file), tokens)
