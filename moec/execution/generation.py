"""Text from any engine with a decoder's signature: prompts in, then one token a row at every step.

An engine that keeps the cache where it runs says so with a method `continuation`; the others get theirs back through
tensors.

Tokens, masks and logits are numpy arrays between steps: after a step the processor's caches are full of weights, and
whatever then runs in Python is paid in misses. An operation of torch takes 60 to 140 µs there, one of numpy 20 to 45,
and small models a step in 10 ms.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.conditions import require
from moec.program.decoder_signature import IDS, LOGITS, MASK, PAST, SEQUENCE, cache_inputs, present_name

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from its logits.

    Attributes:
        temperature: 0 takes the likeliest token; above 0, logits are divided by it and a token is drawn.
        top_k: only this many of the likeliest tokens; 0 for all.
        top_p: only the likeliest tokens that together have this share, see https://arxiv.org/abs/1904.09751.
        seed: of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise MoecError(
                "M201",
                f"{self} makes no sense",
                "sampling",
                "a temperature and top_k of 0 or more, top_p above 0 and at most 1",
            )
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise MoecError(
                "M201",
                "top_k and top_p change nothing without a temperature",
                "sampling",
                "give a temperature above 0, e.g. 0.7",
            )


GREEDY = Sampling()


@runtime_checkable
class Continuation(Protocol):
    """Texts that an engine is writing: it holds their cache."""

    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Append tokens to all rows.

        Args:
            ids: `[batch, new]` int64.
            mask: `[batch, earlier + new]` int64, 0 where there is padding.

        Returns:
            The logits of the last position, `[batch, vocabulary]`. The next step may write over them.
        """
        ...


class TensorContinuation:
    """The cache as tensors that go through the engine's ordinary call: for every engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._past = engine, dict[str, Tensor]()

    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        outputs: dict[str, Tensor] = self._engine(
            **{IDS: torch.from_numpy(ids), MASK: torch.from_numpy(mask)}, **self._past
        )
        self._past = {c.name: outputs[present_name(c.name)] for c in cache_inputs(self._engine.inputs)}
        return last_logits(outputs)


class GuardedContinuation:
    """A continuation of an engine's own, each step asked for what the engine was made for, as `Engine.check` does.

    Tokens that the engine chose are looked up only where its logits are wider than its vocabulary.
    """

    def __init__(self, engine: Engine, text: Continuation) -> None:
        self._engine, self._text, self._width = engine, text, 0
        self._values = next((v for v in engine.values if v.name == IDS), None)

    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        (batch, new), total = ids.shape, mask.shape[1]
        if self._engine.conditions:
            require(self._engine.conditions, {"batch": batch, SEQUENCE: new, PAST: total - new}, self._engine.name)
        if self._values is not None and (new > 1 or not 0 < self._width <= self._values.high + 1):
            self._values.require(torch.from_numpy(ids), self._engine.name)
        logits = self._text.step(ids, mask)
        self._width = logits.shape[-1]
        return logits


def is_decoder(engine: Engine) -> bool:
    """Whether an engine can write text: tokens, mask and a cache in, logits and the longer cache out."""
    caches = [c.name for c in cache_inputs(engine.inputs)]
    return (
        bool(caches)
        and {i.name for i in engine.inputs} == {IDS, MASK, *caches}
        and {LOGITS, *map(present_name, caches)} <= set(engine.outputs)
    )


def continuation(engine: Engine) -> Continuation:
    """A new text on an engine, in the engine's own form where it has one. Raises M211 when it is no decoder with a
    cache."""
    if not is_decoder(engine):
        names = ", ".join(i.name for i in engine.inputs)
        raise MoecError(
            "M211",
            f"it writes no text: its inputs are {names}",
            engine.name,
            "compile a causal language model, without --no-cache",
        )
    own = getattr(engine, "continuation", None)
    return TensorContinuation(engine) if own is None else GuardedContinuation(engine, own())


def last_logits(outputs: Mapping[str, Tensor]) -> np.ndarray:
    """The logits of the last position `[batch, vocabulary]`, on the host and in a dtype that numpy has."""
    logits = outputs[LOGITS][:, -1]
    return (logits.float() if logits.dtype == torch.bfloat16 else logits).numpy(force=True)


def pad(prompts: Sequence[Sequence[int]], filler: int = 0) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths as one batch: ids and mask, `[batch, longest]` int64, padding on the left."""
    longest = max(map(len, prompts), default=0)
    ids = [[*[filler] * (longest - len(p)), *p] for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(mask, dtype=torch.int64)


def generate(
    engine: Engine, ids: Tensor, mask: Tensor | None = None, *,
    max_tokens: int = 64, eos: Iterable[int] = (), filler: int = 0, sampling: Sampling = GREEDY, context: int = 0,
) -> Iterator[Tensor]:  # fmt: skip
    """Continue prompts.

    Args:
        engine: a decoder with a cache.
        ids: `[batch, length]` int64.
        mask: the same shape, 0 where a row has padding, on either side; all ones by default. Padding is moved to the
            left before the engine sees it, so that windows of attention and the last position are the same for all
            rows.
        max_tokens: how many tokens to append at most; fewer where the context ends earlier.
        eos: a row that has got one of these is finished, and gets only `filler` from then on; all rows finished ends
            the iteration.
        filler: the id for padding.
        sampling: how tokens are chosen.
        context: the most tokens that a text may have, prompt included; 0 when there is no bound.

    Yields:
        The next token of every row, `[batch]` int64.

    Raises:
        MoecError: M201 without tokens to make, M211 when the engine is no decoder, or ids or mask are not of this form,
            or too long.
    """
    text = continuation(engine)
    ids, mask = _aligned(engine, ids, mask, context)
    if max_tokens < 1:
        raise MoecError("M201", f"{max_tokens} tokens were asked for", "max_tokens", "ask for one or more")
    steps = min(max_tokens, context - ids.shape[1]) if context else max_tokens
    return _steps(text, ids.numpy(), mask.numpy(), steps, np.array([*eos], np.int64), filler, sampling)


def _aligned(engine: Engine, ids: Tensor, mask: Tensor | None, context: int) -> tuple[Tensor, Tensor]:
    """Ids and mask with all padding on the left and no column of padding alone."""
    mask = torch.ones_like(ids) if mask is None else mask
    fits = ids.dim() == 2 and ids.dtype == mask.dtype == torch.int64 and ids.shape == mask.shape
    if not fits or not bool(mask.sum(-1).gt(0).all()) or not ids.numel():
        got = f"{str(ids.dtype)[6:]}{list(ids.shape)} and {str(mask.dtype)[6:]}{list(mask.shape)}"
        fix = "pass both as int64[batch, length], with at least one token a row"
        raise MoecError("M211", f"ids and mask are {got}, or a row is empty", engine.name, fix)
    longest = int(mask.sum(-1).max())
    if context and longest >= context:
        fix = f"shorten the prompt to {context - 1} tokens or fewer"
        raise MoecError(
            "M211", f"a prompt of {longest} tokens leaves no room in a context of {context}", engine.name, fix
        )
    order = mask.bool().long().argsort(dim=1, stable=True)[:, -longest:]
    return ids.gather(1, order), mask.gather(1, order)


def _steps(
    text: Continuation, ids: Any, mask: Any, steps: int, eos: Any, filler: int, sampling: Sampling
) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(sampling.seed)
    finished, one = np.zeros(len(ids), bool), np.ones((len(ids), 1), np.int64)
    for _ in range(steps):
        token = choose(text.step(ids, mask), sampling, generator)
        token[finished] = filler
        yield torch.from_numpy(token)
        finished |= (token[:, None] == eos).any(1)
        if finished.all():
            return
        ids, mask = token[:, None], np.concatenate([mask, one], 1)


def choose(logits: np.ndarray, sampling: Sampling, generator: torch.Generator | None = None) -> np.ndarray:
    """The next token of every row, `[batch]` int64, from logits `[batch, vocabulary]`."""
    if not sampling.temperature:
        return logits.argmax(-1)
    scores = torch.from_numpy(logits).float() / sampling.temperature
    if sampling.top_k:
        least = scores.topk(min(sampling.top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    shares, order = scores.softmax(-1).sort(dim=-1, descending=True)
    shares = shares.masked_fill(shares.cumsum(-1) - shares >= sampling.top_p, 0)
    drawn = order.gather(1, shares.multinomial(1, generator=generator))
    return drawn[:, 0].numpy()


def clocked(items: Iterator[Item]) -> Iterator[tuple[Item, float]]:
    """Each item with the seconds that it was waited for."""
    while True:
        start = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        yield item, time.perf_counter() - start
