"""Second moments of what reaches a matrix: the Hessians of its squared output error, for linear layers and for each
expert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from moec.execution.choices import choice_of
from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.pipeline.calibration import BATCH, Calibration
from moec.program.decoder_signature import text_inputs
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.program.provenance import module_path

BLEND = 0.1  # share of the moments of all tokens in an expert's
GROWTH = 4  # how many times the calibration text that was allowed may be taken for the experts' sake
SAMPLE = 4096  # tokens of all that are sent through an expert's first product for the moments of its second


def second_moments(parts: Iterable[Tensor]) -> Tensor:
    """The mean of `x xᵀ` over all rows x of tensors `[…, in]`, in float32: `[in, in]`."""
    return mean_of(map(squares, parts))


def squares(part: Tensor) -> tuple[Tensor, int]:
    """The sum of `x xᵀ` over the rows x of a tensor `[…, in]`, in float32, and their number. The rows are copied: those
    that lie in memory in another way are added in another order."""
    rows = part.reshape(-1, part.shape[-1]).to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return rows.t() @ rows, len(rows)


def mean_of(sums: Iterable[tuple[Tensor, int]]) -> Tensor:
    """The mean of what several sums are of, added up one after the other."""
    total, count = torch.zeros(()), 0
    for part, more in sums:
        total, count = total + part, count + more
    return total / max(1, count)


def weighted_moments(rows: Tensor, weights: Tensor) -> Tensor:
    """The same of rows `[N, in]` that count by weights `[N]`: zeros without any."""
    return (rows.t() * weights) @ rows / weights.sum().clamp(min=1e-30)


@dataclass(frozen=True)
class Arrivals:
    """What reaches the experts of one block.

    A token counts in an expert's moments by the weight that the expert's output gets, and a tenth of the moments of all
    tokens is added: an expert that few tokens reached is not fitted to these few, and one that none reached is fitted
    to all.

    Attributes:
        rows: every token `[T, H]`, float32.
        ids, weights: of the experts that each was given to, `[T, K]`. experts: their number.
        scaled: weights multiply the experts' inputs, not their outputs.
        everything: the moments of all rows `[H, H]`; computed when they are asked for, where they are not given.
    """

    rows: Tensor
    ids: Tensor
    weights: Tensor
    experts: int
    scaled: bool = False
    everything: Tensor | None = None

    @classmethod
    def of(cls, calls: OperatorCalls) -> Arrivals:
        """Of a `moec::experts` or `moec::moe` operator."""
        by_input = calls.moe_calls()
        made = [choice_of(call) for call in by_input]
        rows = torch.cat([call.x.reshape(-1, call.x.shape[-1]).float() for call in by_input])
        weights, ids = torch.cat([w.float() for w, _, _ in made]), torch.cat([i for _, i, _ in made])
        return cls(rows, ids, weights, made[0][2], by_input[0].score_before)

    @property
    def counts(self) -> Tensor:
        """Tokens of each expert, `[E]`; a weight of zero is none."""
        return self.ids[self.weights != 0].bincount(minlength=self.experts)

    def of_expert(self, e: int) -> tuple[Tensor, Tensor]:
        """The rows that expert e computes `[N, H]`, and what each counts `[N]`."""
        token, place = torch.where((self.ids == e) & (self.weights != 0))
        weights, rows = self.weights[token, place], self.rows[token]
        return (rows * weights[:, None], torch.ones_like(weights)) if self.scaled else (rows, weights.abs())

    def first(self, e: int) -> Tensor:
        """The moments of expert e's inputs, `[H, H]`."""
        rows, counts = self.of_expert(e)
        factor = self._factor(e)
        return weighted_moments(rows, counts) + BLEND * factor * factor * self._all

    def second(self, e: int, hidden: Callable[[Tensor], Tensor]) -> Tensor:
        """The moments of what `hidden` makes of expert e's inputs, `[I, I]`. Of all tokens, `SAMPLE` at most are taken,
        evenly."""
        rows, counts = self.of_expert(e)
        everything = self.rows[:: -(-len(self.rows) // SAMPLE)] * self._factor(e)
        return weighted_moments(hidden(rows), counts) + BLEND * second_moments([hidden(everything)])

    def _factor(self, e: int) -> float:
        """What a token's input would be multiplied by, were it given to expert e."""
        chosen = self.weights[self.ids == e]
        return float(chosen.mean()) if self.scaled and len(chosen) else 1.0

    @cached_property
    def _all(self) -> Tensor:
        return second_moments([self.rows]) if self.everything is None else self.everything


# ---------------------------------------------------------------------- how much text
def count_tokens(program: Program, inputs: Iterable[Mapping[str, Tensor]]) -> dict[fx.Node, Tensor]:
    """How many tokens reach each expert of each block: `[E]`."""
    blocks, found = moe_nodes(program), dict[fx.Node, Tensor]()

    def visit(calls: OperatorCalls) -> None:
        if calls.node in blocks:
            made = [choice_of(call) for call in calls.moe_calls()]
            found[calls.node] = sum(
                (ids[weights != 0].bincount(minlength=count) for weights, ids, count in made),
                torch.zeros((), dtype=torch.int64),
            )

    if blocks:
        run_in_lockstep(program, inputs, visit, until=blocks[-1])
    return found


def enough_text(program: Program, calibration: Calibration, floor: int) -> tuple[Calibration, dict[fx.Node, Tensor]]:
    """Let a text be read on until every expert was reached by `floor` tokens: twice as much at a time, up to `GROWTH`
    times what was allowed, or its end.

    Returns:
        The text with as much allowed as was needed, and the tokens that reached each expert of each block.
    """
    allowed, most = calibration.windows(), GROWTH * calibration.text.tokens
    counts = count_tokens(program, _batches(program, allowed))
    while counts and min(int(c.min()) for c in counts.values()) < floor and 0 < 2 * calibration.text.tokens <= most:
        more = replace(calibration, text=replace(calibration.text, tokens=2 * calibration.text.tokens))
        new = more.windows()[len(allowed) :]
        if not len(new):
            break
        calibration, allowed = more, more.windows()
        counts = {node: c + counts[node] for node, c in count_tokens(program, _batches(program, new)).items()}
    return calibration, counts


def coverage(counts: Mapping[fx.Node, Tensor]) -> list[dict[str, Any]]:
    """For the report: each block's module, and of the tokens that reached its experts the least, the median and all."""
    return [
        {"module": module_path(n) or n.name, "least": int(c.min()), "median": int(c.median()), "tokens": c.tolist()}
        for n, c in counts.items()
    ]


def _batches(program: Program, windows: Tensor) -> list[dict[str, Tensor]]:
    return [text_inputs(program.inputs, ids) for ids in torch.split(windows, BATCH)]  # type: ignore[no-untyped-call]
