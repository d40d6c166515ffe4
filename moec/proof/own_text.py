"""Texts that the untouched model writes itself, and how far a changed one is from it there.

Largest differences of logits say little about what a language model says: half of a standard deviation somewhere may
cost it nothing. What counts is its distribution over the next token, on texts like those that it meets. The untouched
model writes such texts itself: from a few drawn tokens it goes on with the likeliest one, again and again. On a trained
model, KL divergences there are those on real text (`moec.proof.budgets`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.divergence import divergence
from moec.execution.engine import Engine
from moec.execution.generation import generate, is_decoder
from moec.frontend.source import Source
from moec.program.decoder_signature import IDS, LOGITS, MASK, PAST, cache_inputs, text_inputs
from moec.program.program import Input, Program
from moec.proof.budgets import Budget
from moec.proof.digits import at_most
from moec.shown import figure_of

TEXTS, PROMPT, CONTINUED = 8, 4, 24
STREAMED_CONTINUED = 6  # where each token reads all weights anew
_SHORTEST = 8  # tokens of a text, where an engine takes no long ones
_ROWS = 64  # of logits that are held in float64
MILDER = "make the passes less aggressive, or allow more with --max-kl, or with --tolerance on the outputs"
NEAR = 0.1  # nats: tokens that the untouched model holds for less likely by no more than this are as good


@dataclass(frozen=True)
class OwnText:
    """Texts of one length.

    Attributes:
        ids: int64 `[texts, length]`.
        prompt: how many tokens of each were drawn; the rest was continued.
    """

    ids: Tensor
    prompt: int


@dataclass(frozen=True)
class OwnQuality:
    """What a changed model says on the untouched one's texts.

    Attributes:
        reference, candidate: whose distributions were compared.
        texts, tokens: how many texts, and how many predictions of a next token were compared in them.
        kl_mean, kl_max: of KL(reference ‖ candidate) over these, in nats.
        top1: share of them for which both find the same token the likeliest. near: share for which they don't, and the
            reference holds the candidate's for less likely by at most `NEAR` nats.
        max_kl, min_top1, why: what is allowed, see `moec.proof.budgets.Budget`.
    """

    reference: str
    candidate: str
    texts: int
    tokens: int
    kl_mean: float
    kl_max: float
    top1: float
    near: float
    max_kl: float
    min_top1: float | None
    why: str

    @property
    def budgets(self) -> tuple[tuple[str, str, bool], ...]:
        """Of each figure that decides: its name, the figure beside what is allowed, and whether that is kept."""
        kept = at_most(self.kl_mean, self.max_kl)
        figure = f"{self.kl_mean:.4g} nats a token, {figure_of(self.max_kl)} allowed ({self.why})"
        kl = ("mean KL divergence", figure, kept)
        agree = self.top1 + self.near
        said = f"{100 * self.top1:.4g} % + {100 * self.near:.2g} % nearly as likely"
        if self.min_top1 is None:
            return (kl, ("top-1 agreement", said, True))
        return (kl, ("top-1 agreement", f"{said}, {100 * self.min_top1:g} % needed", agree >= self.min_top1))

    @property
    def problems(self) -> tuple[str, ...]:
        """What is not allowed, in words."""
        return tuple(f"{name} {text}" for name, text, kept in self.budgets if not kept)

    @property
    def ok(self) -> bool:
        """Whether the budget is kept; figures that are not numbers keep none."""
        return not self.problems

    def __str__(self) -> str:
        return f"KL {self.kl_mean:.2g} nats of {figure_of(self.max_kl)}, top-1 {self.top1:.1%}"


def is_language_model(program: Program) -> bool:
    """Whether a program maps tokens (and their mask and cache) to logits `[batch, sequence, vocabulary]`."""
    ids = next((i for i in program.inputs if i.name == IDS and len(i.shape) == 2), None)
    known = {IDS, MASK, *(c.name for c in cache_inputs(program.inputs))}
    if ids is None or LOGITS not in program.outputs or not {i.name for i in program.inputs} <= known:
        return False
    logits = next(o for o in program.output_signature() if o.name == LOGITS)
    return len(logits.shape) == 3 and logits.shape[:2] == ids.shape and logits.dtype.is_floating_point


def write_own_text(
    reference: Engine,
    source: Source,
    seed: int,
    holds: Callable[[Mapping[str, int]], bool] = lambda _sizes: True,
    streamed: bool = False,
) -> OwnText:
    """Let the untouched model continue drawn prompts.

    Args:
        reference: the untouched model, or what stands for it. seed: of the prompts.
        holds: whether the engine that is to be judged takes these sizes; the first of some that it takes is used.
        streamed: write shorter texts, as each token reads all weights.

    Returns:
        Texts; drawn tokens alone where the model runs at one length only.
    """
    spec = next(i for i in source.inputs if i.name == IDS)
    continued = STREAMED_CONTINUED if streamed else CONTINUED
    rows, length = _size(spec, PROMPT + continued, source.facts().context, holds)
    domain = source.domains.get(IDS)
    drawn = torch.randint(
        0, domain.high if domain else 2, (rows, length), generator=torch.Generator().manual_seed(seed)
    )
    if (start := source.facts().bos) is not None:  # there are models that say nothing sensible without it
        drawn[:, 0] = start
    prompt = min(PROMPT, length - 1)
    if isinstance(spec.shape[1], str):
        try:
            return OwnText(_continue(reference, drawn[:, :prompt], length - prompt), prompt)
        except MoecError as error:
            if error.code[:2] != "M2":  # it takes no text of these lengths
                raise
    return OwnText(drawn, 1)


def _size(spec: Input, length: int, context: int, holds: Callable[[Mapping[str, int]], bool]) -> tuple[int, int]:
    """Texts, and tokens of each: as many as the engine takes."""
    batch, tokens = spec.shape
    length = min(length, context) if context else length
    found = []
    for rows, long in ((TEXTS, length), (4, length), (2, length), (1, length), (2, _SHORTEST), (1, _SHORTEST)):
        size = batch if isinstance(batch, int) else rows, tokens if isinstance(tokens, int) else min(long, length)
        named = {name: n for name, n in zip(spec.shape, size, strict=True) if isinstance(name, str)}
        found += [size] if holds({**named, PAST: 0}) else []
    return found[0] if found else (2, max(2, min(_SHORTEST, length)))


def _continue(engine: Engine, ids: Tensor, count: int) -> Tensor:
    if is_decoder(engine):
        return torch.cat([ids, torch.stack(list(generate(engine, ids, max_tokens=count)), 1)], 1)
    for _ in range(count):
        ids = torch.cat([ids, logits_of(engine, ids)[:, -1:].argmax(-1)], 1)
    return ids


def logits_of(engine: Engine, ids: Tensor) -> Tensor:
    """What an engine says after each token: `[texts, length, vocabulary]`."""
    outputs: dict[str, Any] = engine(**text_inputs(engine.inputs, ids))
    logits: Tensor = outputs[LOGITS]
    return logits


def judge(
    reference: Engine, candidate: Engine, text: OwnText, budget: Budget, want: Tensor | None = None
) -> OwnQuality:
    """Compare what two say on the texts, where the untouched model continued them.

    Args:
        want: the reference's logits, where they are known already.

    Raises:
        MoecError: M105 when the reference's logits are not numbers.
    """
    want = logits_of(reference, text.ids) if want is None else want
    want, got = (logits[:, text.prompt - 1 :].flatten(0, 1) for logits in (want, logits_of(candidate, text.ids)))
    if not want.isfinite().all():
        fix = "look at its weights with `moec inspect`"
        raise MoecError("M105", "the untouched model's logits are NaN or infinite", reference.name, fix)
    kl, top1, near = torch.cat(
        [_row(*pair) for pair in zip(torch.split(want, _ROWS), torch.split(got, _ROWS), strict=True)], 1
    )
    figures = float(kl.mean()), float(kl.max()), float(top1.mean()), float(near.mean())
    names = reference.name, candidate.name
    return OwnQuality(*names, len(text.ids), len(kl), *figures, budget.max_kl, budget.min_top1, budget.why)


def _row(want: Tensor, got: Tensor) -> Tensor:
    """Of some predictions `[3, N]` in float64: KL divergence, whether the likeliest token is the same, and whether
    another one is nearly as likely."""
    p, q = (logits.double().log_softmax(-1) for logits in (want, got))
    gap = p.amax(-1) - p.gather(-1, q.argmax(-1, keepdim=True))[:, 0]
    return torch.stack([divergence(p, q), (gap == 0).double(), ((gap > 0) & (gap <= NEAR)).double()])
