"""Text for the passes that need data: windows of tokens, drawn by a seed, as many as are allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.pipeline.calibration_text import CalibrationText
from moec.program.decoder_signature import text_inputs
from moec.program.signature import Input, Sample

BATCH = 4  # windows that run together


@dataclass(frozen=True)
class Calibration:
    """A text in a model's tokens.

    Windows don't overlap and come in an order that the seed decides, so that a few of them are a sample of the whole
    text and not its beginning, and more of them begin with the same ones.

    Attributes:
        text: which one, and how much of it. sha256: of the file.
        tokens: int64 `[N]`. start: what the tokenizer puts before every text; it begins every window.
        seed: of the order.
        parts: the texts by name, where several were given; this one is then all of them.
    """

    text: CalibrationText
    sha256: str
    tokens: Tensor = field(repr=False)
    start: tuple[int, ...] = ()
    seed: int = 0
    parts: Mapping[str, Calibration] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.tokens) < self._step or self._step < 1:
            what = f"the calibration text has {len(self.tokens)} tokens, too few for one window of {self.text.window}"
            raise MoecError("M211", what, self.text.file, "give a longer text; some ten thousand tokens are usual")

    @property
    def _step(self) -> int:
        return self.text.window - len(self.start)

    def windows(self) -> Tensor:
        """All windows that may be used: int64 `[windows, window]`, in the seed's order."""
        whole = len(self.tokens) // self._step
        allowed = min(whole, max(1, self.text.tokens // self._step)) if self.text.tokens else whole
        rows = self.tokens[: whole * self._step].view(whole, self._step)
        chosen = rows[torch.randperm(whole, generator=torch.Generator().manual_seed(self.seed))[:allowed]]
        return torch.cat([torch.tensor(self.start, dtype=torch.int64).expand(len(chosen), -1), chosen], dim=1)

    def batches(self, inputs: tuple[Input, ...]) -> Iterator[dict[str, Tensor]]:
        """The windows as inputs of a language model, `BATCH` at a time."""
        yield from _batches(self.windows(), inputs)

    def divided(self, inputs: tuple[Input, ...], one_in: int, where: str) -> tuple[list[Sample], list[Sample]]:
        """The windows as inputs to fit on, and as others that judge the fit: one in so many, at least one, the last
        ones. `where` is for the error. Raises M203 for a text of one window."""
        windows = self.windows()
        if len(windows) < 2:
            what = "the calibration text is one window, and a fit needs another to be judged by"
            raise MoecError("M203", what, where, "give a longer text, or more of it with --calibration-tokens")
        start = len(windows) - max(1, len(windows) // one_in)
        return [*_batches(windows[:start], inputs)], [*_batches(windows[start:], inputs)]


def _batches(windows: Tensor, inputs: tuple[Input, ...]) -> Iterator[dict[str, Tensor]]:
    for ids in torch.split(windows, BATCH):  # type: ignore[no-untyped-call]
        yield text_inputs(inputs, ids)
