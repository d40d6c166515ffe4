"""A text fed to a decoder in several calls: what it says of each token, whoever keeps the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moec.execution.engine import Engine
from moec.execution.generation import continuation
from moec.program.decoder_signature import (
    EMBEDS,
    IDS,
    LOGITS,
    MASK,
    SEQUENCE,
    cache_inputs,
    new_tokens,
    present_name,
    told_prompt,
)
from moec.program.signature import Sample, converted

# tokens of each text in each of these calls, which are as wide as the most of them: fewer than a window holds, none at
# all, and all; first of a text, and after others. A negative number: of tokens that stand behind the padding
PADDED_CALLS = ((8, 0, 1), (0, 0, 1), (0, -3, 5), (3, 2, 4), (3, 6, 2), (1, 4, 2), (1, 1, 1))


class Beside:
    """An engine that is given, with tokens of a text, what else a sample has of the same tokens."""

    def __init__(self, engine: Engine, sample: Sample, axes: Mapping[str, int]) -> None:
        self.inputs, self._engine, self._sample, self._axes = engine.inputs, engine, sample, axes

    @classmethod
    def of(cls, engine: Engine, sample: Sample) -> Any:
        """The engine itself where it takes no more than tokens, mask and states."""
        known = {IDS, EMBEDS, MASK, *(c.name for c in cache_inputs(engine.inputs))}
        more = [i for i in engine.inputs if i.name not in known and SEQUENCE in i.shape]
        return cls(engine, sample, {i.name: i.shape.index(SEQUENCE) for i in more}) if more else engine

    def __call__(self, **given: Tensor) -> dict[str, Tensor]:
        end, count = given[MASK].shape[1], new_tokens(given).shape[1]
        more = {name: self._sample[name].narrow(axis, end - count, count) for name, axis in self._axes.items()}
        found: dict[str, Tensor] = self._engine(**given, **converted(self.inputs, more))
        return found


def written(engine: Engine, ids: Tensor, mask: Tensor, steps: Sequence[int], others: Sequence[Tensor] = ()) -> Tensor:
    """Logits `[batch, steps, vocabulary]` of each step's last token, the cache kept by the engine, in float64.

    `others`: ids of texts that take each step after this one does, over whatever it left where they are.
    """
    text, beside = continuation(engine), [(tokens, continuation(engine)) for tokens in others]
    found, end = list[Tensor](), 0
    for step in steps:
        start, end = end, end + step
        logits = text.step(ids[:, start:end].numpy(), mask[:, :end].numpy())
        found.append(torch.from_numpy(logits.copy()).double())  # the next step may write over them
        for tokens, other in beside:
            other.step(tokens[:, start:end].numpy(), mask[:, :end].numpy())
    return torch.stack(found, 1)


def in_turns(engine: Engine, ids: Tensor, mask: Tensor, steps: Sequence[int]) -> Tensor:
    """The same after another text's prompt, and in turns with a third text."""
    written(engine, ids.flip(0, 1), mask, steps[:1])
    return written(engine, ids, mask, steps, [ids.flip(1)])


def logits_of(engine: Engine, ids: Tensor, mask: Tensor, steps: Sequence[int], prompt: int = 0) -> Tensor:
    """Logits `[batch, tokens of all steps, vocabulary]` of the text fed in these steps, in float64; where it makes a
    difference how long the prompt is, of one of so many tokens."""
    found, end, cache = [], 0, told_prompt(engine.inputs, len(ids), prompt) if prompt else {}
    for step in steps:
        start, end = end, end + step
        given = {IDS if ids.dim() == 2 else EMBEDS: ids[:, start:end], MASK: mask[:, :end]}
        outputs = engine(**converted(engine.inputs, given), **cache)
        cache = {spec.name: outputs[present_name(spec.name)] for spec in cache_inputs(engine.inputs)}
        found.append(outputs[LOGITS].double())
    return torch.cat(found, 1)


def with_padding(engine: Engine, ids: Tensor, mask: Tensor, steps: Sequence[int]) -> Tensor:
    """The same in `PADDED_CALLS`, which are as wide as `steps`."""
    fed, padded = (torch.zeros(len(t), sum(steps), *t.shape[2:], dtype=t.dtype) for t in (ids, mask))
    places = torch.zeros(mask.shape, dtype=torch.int64)  # where each token stands among them
    end, done = 0, [0] * len(ids)
    for step, counts in zip(steps, PADDED_CALLS, strict=True):
        start, end = end, end + step
        for row, count in enumerate(counts):
            first = start if count >= 0 else end + count
            places[row, done[row] : done[row] + abs(count)] = torch.arange(first, first + abs(count))
            done[row] += abs(count)
    rows = torch.arange(len(ids))[:, None]
    fed[rows, places], padded[rows, places] = ids, mask
    return logits_of(engine, fed, padded, steps)[rows, places]
