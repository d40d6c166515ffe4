"""A search that is led by the router: inputs on which an expert was almost chosen are changed a little, and kept when
it comes nearer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moec.dialect import Routing, route_reference
from moec.frontend.source import Source
from moec.program.decoder_signature import is_past
from moec.program.signature import Sample

ROWS = 8  # of an input: the best one so far, and changed copies of it
PATIENCE = 12  # proposals that come no nearer, after which an expert is given up


def nearness(logits: Tensor, bias: Tensor | None, rule: Routing) -> Tensor:
    """How far each expert `[T, E]` is above the least that a token chose, in logits, or in scores where a bias decides
    with them; negative for one that was not chosen. Groups of experts, which may be closed, are not looked at."""
    logits = logits.reshape(-1, logits.shape[-1]).float()
    ids = route_reference(logits, bias, rule)[1]
    scores = logits
    if bias is not None:
        scores = (logits.sigmoid() if rule.score == "sigmoid" else logits.softmax(-1)) + bias.float()
    return scores - scores.gather(-1, ids).amin(-1, keepdim=True)


@dataclass
class _Best:
    """The row of an input on which an expert came nearest."""

    near: float
    sample: Sample
    row: int
    fruitless: int = 0


class Climb:
    """Keeps, for each expert, the input that came nearest to it, and proposes changed copies.

    Args:
        source: the model, for the values that its inputs may take.
        vocabulary: how many values an input of tokens has, by its name.
        rows: of what is proposed.
    """

    def __init__(self, source: Source, vocabulary: Mapping[str, int], seed: int = 0, rows: int = ROWS) -> None:
        self._source, self._vocabulary, self._rows = source, vocabulary, rows
        self._generator = torch.Generator().manual_seed(seed)
        self._best: dict[tuple[str, int], _Best] = {}

    def learn(self, sample: Sample, near: Mapping[str, Tensor]) -> None:
        """Note what came nearer than anything before; `near`: by block, `[batch, E]`, see `nearness`."""
        for block, values in near.items():
            most, rows = values.max(0)
            for e, (value, row) in enumerate(zip(most.tolist(), rows.tolist(), strict=True)):
                best = self._best.get((block, e))
                if best is None or value > best.near:
                    self._best[block, e] = _Best(value, sample, row)

    def propose(self, missed: Sequence[tuple[str, int]]) -> Sample | None:
        """Changed copies of the input that came nearest to one of these experts, (block, number); the one that was
        tried least since it last came nearer. None when nothing is known of any, or none
        came nearer for long."""
        known = [b for key in missed if (b := self._best.get(key)) is not None and b.fruitless < PATIENCE]
        if not known:
            return None
        best = min(known, key=lambda b: b.fruitless)
        best.fruitless += 1
        batch = self._source.inputs[0].shape[0]
        return {
            spec.name: self._changed(spec.name, best.sample[spec.name], best.row, spec.shape[:1] == (batch,))
            for spec in self._source.inputs
        }

    def _changed(self, name: str, value: Tensor, row: int, by_row: bool) -> Tensor:
        if not by_row or not isinstance(self._source.inputs[0].shape[0], str):
            return value
        rows = value[row : row + 1].expand(self._rows, *value.shape[1:]).clone()
        # from one element of a row to half of it
        share = 0.5 * (2 / max(2, rows[0].numel())) ** torch.rand(self._rows, generator=self._generator)
        share = share.view(-1, *[1] * (rows.dim() - 1))
        share[0] = 0.0  # the best one as it was
        if name in self._vocabulary:
            other = torch.randint(0, self._vocabulary[name], rows.shape, generator=self._generator).to(rows.dtype)
            return torch.where(torch.rand(rows.shape, generator=self._generator) < share, other, rows)
        if rows.is_floating_point() and not is_past(name):
            noise = torch.randn(rows.shape, generator=self._generator) * rows.std(correction=0)
            return (rows + 2 * share * noise).to(rows.dtype)
        return rows
