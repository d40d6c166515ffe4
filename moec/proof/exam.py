"""The text that an engine is judged on, and the error budget there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from moec.errors import MoecError


@dataclass(frozen=True)
class Exam:
    """A text to judge an engine on, and what is allowed.

    Attributes:
        text: the file's name, see `moec.text.corpus.read_corpus`.
        tokens: how much of it is used at most; 0 for all.
        window: tokens that the model sees at a time; windows don't overlap. Never more than the model's context.
        max_kl: the mean KL divergence that is allowed, in nats a token. max_perplexity_ratio: the engine's perplexity
            over the model's.
    """

    text: str
    tokens: int = 16384
    window: int = 256
    max_kl: float | None = None
    max_perplexity_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.window < 2 or self.tokens < 0:
            raise MoecError(
                "M201",
                f"windows of {self.window} tokens, {self.tokens} in all",
                "--window, --tokens",
                "a window has 2 tokens or more; 0 is all",
            )
        kl, ratio = self.max_kl or 0.0, 1.0 if self.max_perplexity_ratio is None else self.max_perplexity_ratio
        if not (0 <= kl < math.inf and 0 < ratio < math.inf):  # false for NaN as well
            raise MoecError(
                "M201",
                "this budget says nothing, or no engine can keep it",
                "--max-kl, --max-perplexity-ratio",
                "e.g. --max-kl 0.1 or --max-perplexity-ratio 1.05",
            )

    @property
    def bounded(self) -> bool:
        """Whether anything is asked of the engine."""
        return self.max_kl is not None or self.max_perplexity_ratio is not None

    @classmethod
    def of(cls, text: Any, **options: Any) -> Exam | None:
        """From options of which some may be None, meaning the default; None without a text. Raises M201 for options
        that need one; `max_kl` alone does not (`moec.proof.own_text`)."""
        given = {name: value for name, value in options.items() if value is not None}
        if text is None:
            if set(given) - {"max_kl"}:
                raise MoecError(
                    "M201",
                    f"{', '.join(sorted(set(given) - {'max_kl'}))} says nothing without a text",
                    "--text",
                    "name a text with --text FILE",
                )
            return None
        return cls(str(text), **given)
