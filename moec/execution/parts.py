"""Several graphs that write a text together, as one engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.generation import GREEDY, Sampling, choose, last_logits


class PartsText(Protocol):
    """A text that is being written, with its caches."""

    def advance(self, ids: Tensor) -> dict[str, Tensor]:
        """What the decoder says of the next tokens `[batch, new]`; the caches are kept for those after them."""
        ...


class PartsEngine(Engine):
    """Takes what the whole model takes.

    Attributes:
        parts: in the order in which they run.
    """

    def __init__(self, *parts: Engine) -> None:
        self.parts = parts
        self.prepared = "; ".join(filter(None, (part.prepared for part in parts)))

    @abstractmethod
    def text(self, given: Mapping[str, Tensor]) -> PartsText:
        """A new text beside these inputs."""

    def be_timed(self) -> None:
        for part in self.parts:
            part.be_timed()

    def close(self) -> None:
        for part in self.parts:
            part.close()


def respond(
    engine: PartsEngine, given: Mapping[str, Tensor], start: Tensor, *,
    max_tokens: int = 64, eos: Iterable[int] = (), filler: int = 0, sampling: Sampling = GREEDY, context: int = 0,
) -> Iterator[Tensor]:  # fmt: skip
    """Write a text for each row of an engine's inputs.

    Args:
        engine: all parts.
        given: what stands beside the text, by name: the encoder's inputs `[batch, …]`, the mask may be left out; or
            images, and the mask `[batch, length]` of `start`.
        start: tokens `[batch, length]` int64 that the texts begin with, one or more a row.
        max_tokens, eos, filler, sampling, context: see `moec.execution.generation.generate`; of the text.

    Yields:
        The next token of every row, `[batch]` int64.

    Raises:
        MoecError: M201 without tokens to make, M211 where the start leaves no room in the context.
    """
    if max_tokens < 1:
        raise MoecError("M201", f"{max_tokens} tokens were asked for", "max_tokens", "ask for one or more")
    if context and start.shape[1] >= context:
        what = f"a start of {start.shape[1]} tokens leaves no room in a context of {context}"
        raise MoecError("M211", what, engine.name, "give a shorter start")
    steps = min(max_tokens, context - start.shape[1]) if context else max_tokens
    return _steps(engine.text(given), start, steps, np.array([*eos], np.int64), filler, sampling)


def _steps(
    text: PartsText, ids: Tensor, steps: int, eos: np.ndarray, filler: int, sampling: Sampling
) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(sampling.seed)
    finished = np.zeros(len(ids), bool)
    for _ in range(steps):
        token = choose(last_logits(text.advance(ids)), sampling, generator)
        token[finished] = filler
        yield torch.from_numpy(token)
        finished |= (token[:, None] == eos).any(1)
        if finished.all():
            return
        ids = torch.from_numpy(token)[:, None]
