"""Which tokens choose between experts, or keys, that half precision can't tell apart, and what of an engine's outputs
does not hang on them.

Near the edge between two experts a token changes sides by rounding. What it says then is neither right nor wrong, and
neither is what tokens say that see it. All others can be held to the tolerance of rounding, and are: a token is left
out for its router's logits in the program alone, never for what the engine said of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from moec.errors import MoecError
from moec.execution.choices import choice, logits_of, room_of
from moec.execution.streaming import StreamingEngine
from moec.execution.trace import trace
from moec.program.decoder_signature import MASK, cache_inputs, growth, in_rows, is_past, is_present, new_tokens
from moec.program.moe_call import EXPERTS, MOE
from moec.program.program import Program
from moec.program.signature import Input, converted
from moec.proof.chosen_experts import hanging
from moec.proof.chosen_keys import hanging_choice
from moec.proof.later_mixing import mixes_after

# What rounding may add to or take from each of a router's logits, as a share of the token's largest. Measured in
# programs of the tests' Mixtral, Qwen2-MoE, Qwen3-MoE and DeepSeek-V2 (two layers) beside float32, worst block: float16
# median 1.5e-3, 99 % of the tokens below 4.5e-3, worst 5.6e-3; bfloat16, eight times as coarse, median 1.3e-2 and, but
# for tokens after a flip, 99 % below 4.8e-2. Both logits of a pair have to be off by this, in opposite directions,
# before a choice flips that counts as decided.
NOISE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
# share of the tokens that must be compared: from fewer, the few that stand first in their texts, a proof says little
LEAST = 0.1


def is_half(precision: torch.dtype | None) -> TypeGuard[torch.dtype]:
    """Whether an engine that computes in this dtype is proven by the tokens whose experts are decided."""
    return precision in (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Decided:
    """How much of a proof in half precision could be compared.

    Attributes:
        precision: the dtype that the engine computes in.
        noise: what its rounding may change in a router's logits, as a share of the largest.
        compared, tokens: tokens that were compared, of how many.
        lost: experts, over all blocks, that inputs reach but no token that could be compared.
        what: between what the others choose.
    """

    precision: str
    noise: float
    compared: int
    tokens: int
    lost: int = 0
    what: str = "experts"

    @property
    def problem(self) -> str:
        """Why this is too little for a proof; empty when it is enough."""
        cannot = f"{self.precision} can't tell this model's {self.what} apart well enough for a proof by outputs"
        if self.compared < LEAST * self.tokens or not self.compared:
            return (
                f"{cannot}: only {self.compared:,} of {self.tokens:,} tokens could be compared, {LEAST:.0%} are "
                "asked for"
            )
        return (
            f"{cannot}: {self.lost} experts are reached only by tokens that could not be compared" if self.lost else ""
        )

    @property
    def where(self) -> str:
        """Where the engine equals its reference, after a claim that it does."""
        precision = "rounding" if self.precision == "float32" else "half precision"
        return f"wherever {precision} can tell {self.what} apart ({self.compared:,} of {self.tokens:,} tokens)"

    def error(self, where: str) -> MoecError | None:
        """M108 when this is too little for a proof, else None."""
        if not self.problem:
            return None
        fix = (
            "judge the engine on a text (--text FILE --max-kl NATS), allow more with --tolerance, or compile "
            "for float32 (precision=fp32)"
        )
        return MoecError("M108", self.problem, where, fix)

    def __str__(self) -> str:
        precision = "rounding" if self.precision == "float32" else "half precision"
        return (
            f"{self.compared:,} of {self.tokens:,} tokens; the others choose between {self.what} that {precision} "
            "can't tell apart"
        )


@dataclass(frozen=True)
class ComparedTokens:
    """What of a sample can be compared.

    Attributes:
        tokens: bool `[batch, sequence]`. texts: bool `[batch]`, those without any undecided token.
        total: tokens that are compared when every choice is decided.
        open: bool `[batch, sequence]`, those that are undecided or see such a token, padding among them; none by
            default.
    """

    tokens: Tensor
    texts: Tensor
    total: int
    open: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))

    @property
    def count(self) -> int:
        """How many tokens are compared."""
        return int(self.tokens.sum())

    def rows(self, count: int) -> Tensor:
        """Which of a block's rows are compared: bool `[count]`. Rows that are not the sample's tokens count by text."""
        batch = len(self.texts)
        if count == self.tokens.numel():
            return self.tokens.flatten()
        return (
            self.texts.repeat_interleave(count // batch) if count % batch == 0 else torch.zeros(count, dtype=torch.bool)
        )

    def of(self, value: Tensor, sample: Mapping[str, Tensor], name: str, inputs: Sequence[Input]) -> Tensor:
        """The part of an output that can be compared.

        Args:
            value: `[batch, sequence, …]`, a state, or `[batch, …]`, one entry a text.
            sample: the inputs. name: of the output.
            inputs: as the signature has them.
        """
        if is_present(name) and _is_cached(sample):
            return self._of_state(value, sample, *growth(name, inputs))
        if value.shape[:2] == self.tokens.shape:
            return value[self.tokens]
        return value[self.texts] if value.dim() and value.shape[0] == len(self.texts) else value

    def _of_state(self, value: Tensor, sample: Mapping[str, Tensor], axis: int | None, rate: int) -> Tensor:
        """A state of what came in, and of these tokens; one that does not grow holds all tokens of its text."""
        mask = sample[MASK].bool()
        if axis is None:
            return value[self.texts & mask[:, -1]]
        tokens = torch.cat([mask[:, : -self.tokens.shape[1]], self.tokens], 1)
        return value.movedim(axis, 1)[in_rows(tokens, rate)]


def look(
    program: Program, sample: Mapping[str, Tensor], noise: float, causal: bool
) -> tuple[ComparedTokens, dict[str, Tensor]]:
    """What can be compared in a sample, and how many of these tokens each expert gets, by the block's node name.

    A token is left out when its choice of experts, or of keys, in any block hangs on `noise`, and when it sees such a
    token: a later one of the same text does if `causal`, else all do. No token sees what the last block made of another
    where only operators follow that look at one token at a time. Padding is seen by no token of the text. A capacity
    lets tokens of all texts in a line push each other, earlier ones too: `hanging` finds them.
    """
    routed: list[tuple[Tensor, bool]] = []
    first = program.inputs[0].name
    chosen: dict[str, tuple[Tensor, Tensor, int]] = {}

    def watch(node: fx.Node, _value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if routing := logits_of(node, args, kwargs):
            room = room_of(node, args, kwargs)
            spoiled = None
            if room is not None:  # only there may a token push another
                so_far, lead = compared_tokens(routed, sample, first, causal), routing[0].shape[:-1]
                spoiled = ~replace(so_far, tokens=~so_far.open).rows(lead.numel()).view(lead)
            found = hanging(*routing, noise, room, spoiled)
            routed.append((found.flatten(), mixes_after(node)))
        if (keys := hanging_choice(node, args, noise)) is not None:
            routed.append((keys.flatten(), mixes_after(node)))
        if node.target in (EXPERTS, MOE):
            chosen[node.name] = choice(node, args, kwargs)

    trace(program, sample, watch)
    part = compared_tokens(routed, sample, first, causal)
    return part, {
        name: _load(part.rows(len(ids)), weights, ids, count) for name, (weights, ids, count) in chosen.items()
    }


def _load(rows: Tensor, weights: Tensor, ids: Tensor, count: int) -> Tensor:
    return torch.bincount(ids[rows][weights[rows] != 0].flatten(), minlength=count)


def compared_tokens(
    found: list[tuple[Tensor, bool]], sample: Mapping[str, Tensor], first: str, causal: bool
) -> ComparedTokens:
    """What can be compared when these choices are undecided.

    Args:
        found: of each block, which rows are, bool `[batch * length]`, and whether other tokens see them afterwards.
        sample: the inputs; `first` names the one whose leading dimensions are batch and, where it holds integers,
            sequence.
        causal: whether a token sees earlier ones only.
    """
    lead = sample[first]
    batch = lead.shape[0] if lead.dim() else 1
    lengths = {len(rows) // batch for rows, _ in found if len(rows) % batch == 0}
    length = lead.shape[1] if lead.dim() == 2 and not lead.is_floating_point() else max(lengths, default=1)
    real = torch.ones(batch, length, dtype=torch.bool)
    if MASK in sample and sample[MASK].dim() == 2 and sample[MASK].shape[1] >= length:
        real = sample[MASK].bool()[:, -length:]
    read = (
        real if _is_cached(sample) else torch.ones_like(real)
    )  # what `moec.program.decoder_signature.without_padding` leaves
    open_, texts = torch.zeros_like(real), torch.ones(batch, dtype=torch.bool)
    for rows, seen in found:
        if len(rows) != batch * length:  # not the tokens of the text itself: an encoder's, patches of an image
            spoiled = rows.view(batch, -1).any(1) if len(rows) % batch == 0 else torch.ones(batch, dtype=torch.bool)
            open_, texts = open_ | spoiled[:, None], texts & ~spoiled
            continue
        rows = rows.view(batch, length)
        open_, texts = open_ | (_seers(rows, real, causal) if seen else rows), texts & ~(rows & read).any(1)
    return ComparedTokens(read & ~open_, texts, int(read.sum()), open_)


def _seers(rows: Tensor, real: Tensor, causal: bool) -> Tensor:
    """The tokens `[batch, sequence]` that see any of these, themselves among them."""
    if causal:
        after = (rows & real).cumsum(1) > 0
        return after | (rows & ~real).cumsum(1).gt(0) & ~real
    return (rows & real).any(1, keepdim=True) | rows.any(1, keepdim=True) & ~real


def is_causal(program: Program, sample: Mapping[str, Tensor]) -> bool:
    """Whether a token sees earlier ones only: known of a decoder with a cache; of others, whether new later tokens
    leave all else as it was."""
    if cache_inputs(program.inputs):
        return True
    ids = sample[program.inputs[0].name]
    if ids.dim() != 2 or ids.is_floating_point() or ids.shape[1] < 2:
        return False
    half = ids.shape[1] // 2
    other = torch.cat([ids[:, :half], ids[:, :half].roll(1, 0), ids[:, 2 * half :]], 1)
    before, after = (_run(program, {**sample, program.inputs[0].name: value}) for value in (ids, other))
    places = [name for name, value in before.items() if value.is_floating_point() and value.shape[:2] == ids.shape]
    pairs = [(before[name][:, :half].double(), after[name][:, :half].double()) for name in places]
    # the mean: the flip of a single token must not pass for sight
    return bool(pairs) and all(float((b - a).abs().mean()) <= 1e-3 * float(b.std(correction=0)) for b, a in pairs)


def _run(program: Program, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = StreamingEngine(program)(**converted(program.inputs, sample))
    return found


def _is_cached(sample: Mapping[str, Tensor]) -> bool:
    return MASK in sample and new_tokens(sample) is not None and any(map(is_past, sample))
