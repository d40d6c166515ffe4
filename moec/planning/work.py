"""What is asked of a device: one forward of a model."""

from __future__ import annotations

from dataclasses import dataclass

from moec.planning.formats import Format
from moec.planning.load import UNIFORM, Load
from moec.planning.shape import Shape
from moec.planning.step import Step, decode_step, prompt_step


@dataclass(frozen=True)
class Work:
    """One forward: `texts` times `rows` tokens with `context` behind them, or whole prompts of `context` tokens."""

    shape: Shape
    format: Format
    texts: float
    context: int
    load: Load = UNIFORM
    rows: int = 1
    prompt: bool = False

    @property
    def tokens(self) -> float:
        """Tokens that go through every layer."""
        return self.texts * (self.context if self.prompt else self.rows)

    @property
    def step(self) -> Step:
        """The same, counted in bytes and FLOPs."""
        if self.prompt:
            return prompt_step(self.shape, self.format, self.texts, self.context, self.load)
        return decode_step(self.shape, self.format, self.texts, self.context, self.load, self.rows)
