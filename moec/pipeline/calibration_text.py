"""Which text the passes that need data may use, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moec.errors import MoecError


@dataclass(frozen=True)
class CalibrationText:
    """Which text, and how much of it.

    Attributes:
        file: its name, see `moec.text.corpus.read_corpus`.
        tokens: how much of it a pass may use; 0 for all.
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
