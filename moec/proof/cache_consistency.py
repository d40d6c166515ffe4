"""Does a decoder say the same whether a text comes in one go, in chunks, or token by token, after another text and
beside a third? What it carries from token to token must make no difference.

A pass may make results depend on how a text is cut into calls (`moec.pipeline.passes.Pass.by_call`). Then this cannot
be asked; what must hold still is that the engine says in every call what the program says in PyTorch in the same call,
with the cache of its own earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.generation import is_decoder
from moec.program.decoder_signature import (
    MASK,
    PAST,
    SEQUENCE,
    are_plain,
    fixed_inputs,
    new_tokens,
    told_prompt,
)
from moec.program.signature import Sample
from moec.proof.compare import Tolerance
from moec.proof.decided_tokens import ComparedTokens, Decided
from moec.proof.digits import at_most
from moec.proof.feeding import PADDED_CALLS, Beside, in_turns, logits_of, with_padding, written
from moec.shown import figure_of

SIZES = {"batch": 3, SEQUENCE: 16}  # one row whole, one padded on the left, one on the right
SINGLY = "prompt, then token by token"
WAYS = {"chunks": (7, 5, 4), SINGLY: (9, *[1] * 7), "token by token": (1,) * 16}
# against the program in PyTorch, which may read all its weights anew in each call
WRITTEN = "one that is being written"  # in an engine that keeps the cache itself, and may leave out logits
IN_TURNS = "one that is being written, after another text and in turns with a third"
PADDED = "calls with padding behind them, in each text another amount"  # as onnxruntime-genai feeds texts of a batch
READS_BEFORE = "a text with padding before it, which the untouched model reads"
STEPS_IN_TURNS = 2  # tokens after the prompt: what one text leaves where another is shows in the first
ONE_GO = "one go"
CALLS = {ONE_GO: (16,), "chunks": (7, 5, 4), "prompt, then token by token": (13, 1, 1, 1)}
TOLD = 3  # tokens of a prompt, where it makes a difference how long it is: the windows behind it move
PAST_BOUND = 4  # tokens that a long text goes on after a window, or whatever bounds what a token sees
OWN = 0.2  # of the tolerance: from there on a model counts as one that hangs on how a text is cut itself
MANY = 64  # single tokens after which shows what every call adds to a recurrent state
ONE_BY_ONE = "a longer text, token by token"
DOUBLING = "pieces that double, and a single token after each"  # of a text longer than two short ones


@dataclass(frozen=True)
class Text:
    """A text, and the calls that it is fed in.

    Attributes:
        sizes: batch and tokens.
        ways: name -> tokens of each call; each is compared with one go.
        calls: the same, where each is compared with the same calls of the program.
    """

    sizes: Mapping[str, int]
    ways: Mapping[str, tuple[int, ...]]
    calls: Mapping[str, tuple[int, ...]]

    def every_call(self) -> list[dict[str, int]]:
        """The sizes of every call that is made, the one that takes the whole text first."""
        ways = [(self.sizes[SEQUENCE],), *self.ways.values(), *self.calls.values()]
        found = [(step, sum(steps[:k])) for steps in ways for k, step in enumerate(steps)]
        return [{**self.sizes, SEQUENCE: step, PAST: past} for step, past in dict.fromkeys(found)]


SHORT = Text(SIZES, WAYS, CALLS)


def shorter_texts() -> list[Text]:
    """For engines that do not take so many texts or tokens, the largest first."""
    sizes = [(batch, length) for length in (12, 8, 4) for batch in (3, 1)]
    return [Text({"batch": b, SEQUENCE: n}, *2 * [_ways(n)]) for b, n in [(1, 16), *sizes]]


def _ways(length: int) -> dict[str, tuple[int, ...]]:
    half = length // 2
    return {"chunks": (half, length - half), "token by token": (1,) * length}


def text_past(bound: int, context: int) -> Text:
    """A text that goes on past a bound, as far as the context allows: its cache is cut one token before the bound, at
    the bound and after it, and once in one piece that is longer than the bound. What is carried meets calls of every
    magnitude on the way there, if that is long."""
    length = max(2, min(bound + PAST_BOUND, context))
    starts = {max(1, min(n, length - 1)) for n in (bound - 1, bound + 2)}
    ways = {f"a prompt of {n}, then token by token": (n, *[1] * (length - n)) for n in sorted(starts)}
    ways |= {DOUBLING: _doubling(length)} if length > 2 * SIZES[SEQUENCE] else {}
    return Text({"batch": 2, SEQUENCE: length}, ways, ways)


def one_by_one(context: int) -> Text:
    """A text of many single tokens, as far as the context allows: what is wrong by little in a state after each call
    adds up over calls, however few tokens they have."""
    length = min(MANY, context)
    ways = {ONE_BY_ONE: (1,) * length}
    return Text({"batch": 1, SEQUENCE: length}, ways, ways)


def _doubling(length: int) -> tuple[int, ...]:
    wanted = accumulate(step for k in range(length.bit_length()) for step in (2**k, 1))
    ends = dict.fromkeys(min(end, length) for end in wanted)
    return tuple(end - start for start, end in pairwise([0, *ends]))


@dataclass(frozen=True)
class Way:
    """One way to feed the text. steps: tokens of each call. deviation: max |d|/std of all logits from those it is
    compared with. left_out: which texts were not compared, and why; may be empty."""

    name: str
    steps: tuple[int, ...]
    deviation: float
    left_out: str = ""


@dataclass(frozen=True)
class Consistency:
    """How far the ways of feeding one text are apart.

    Attributes:
        tolerance: what `deviation` may be.
        ways: each compared with one go; or, `by_call`, with the same calls of the program in PyTorch.
        decided: in half precision, how much of the text was compared, where not all of it was.
    """

    tolerance: float
    ways: tuple[Way, ...]
    by_call: bool = False
    decided: Decided | None = None

    @property
    def title(self) -> str:
        """What was compared with what, before the figures."""
        return "one text, each call against the same call in PyTorch:" if self.by_call else "one text in one go and as"

    @property
    def failed(self) -> tuple[Way, ...]:
        """The ways that say something else."""
        return tuple(way for way in self.ways if not at_most(way.deviation, self.tolerance))

    @property
    def ok(self) -> bool:
        """Whether every way says the same, of enough tokens."""
        return self.error() is None

    def error(self) -> MoecError | None:
        """M101 for a way that says something else, M108 where too few tokens could be compared, else None."""
        wrong = next(iter(self.failed), None)
        if wrong is None:
            return self.decided.error("one text in several ways") if self.decided else None
        than = " than the program in PyTorch" if self.by_call else ""
        what = (
            f"the engine says something else{than} when a text comes as {wrong.name}: max |d|/std "
            f"{wrong.deviation:.2g} where {figure_of(self.tolerance)} is allowed"
        )
        where = f"calls of {', '.join(map(str, wrong.steps))} tokens"
        return MoecError("M101", what, where, "report this, and compile with --no-cache meanwhile")

    def __str__(self) -> str:
        figures = "; ".join(f"{way.name} max |d|/std {way.deviation:.2g}{_without(way)}" for way in self.ways)
        return f"{figures} ({self.decided.compared} of {self.decided.tokens} tokens)" if self.decided else figures


def check_consistency(
    engine: Engine,
    sample: Sample,
    tolerance: Tolerance,
    program: Engine | None = None,
    compared: ComparedTokens | None = None,
    decided: Decided | None = None,
    text: Text = SHORT,
    ways: Mapping[str, tuple[int, ...]] | None = None,
    untouched: Callable[[], Engine] | None = None,
) -> Consistency:
    """Feed one text to a decoder in several ways.

    Args:
        engine: with the signature of `moec.program.decoder_signature`.
        sample: `input_ids [B, S]`, or `inputs_embeds [B, S, H]`, and `attention_mask [B, S]` of the text's sizes; what
            it holds of a cache is left out.
        tolerance: what may differ.
        program: what the engine was built from, in PyTorch, where results depend on how a text is cut into calls: then
            every way is compared with the same way through it, and not with one go.
        compared: the tokens of the text that can be compared, all by default: two runs may choose differently near a
            tie. decided: its figures.
        text: its sizes, and the ways.
        ways: tokens of each call by name, those of the text by default, and the one that the engine writes itself.
        untouched: opens the untouched model. Only where it reads padding before a text may the engine, too.
    """
    ids, mask = new_tokens(sample), sample[MASK]
    calls = text.ways if program is None else text.calls
    fed, program = Beside.of(engine, sample), program and Beside.of(program, sample)
    every = _every_way(engine, calls) if fed is engine else calls  # of more inputs, nothing says what padding has
    read = mask.bool() if compared is None else compared.tokens
    yardstick = fed if program is None else program
    known: dict[tuple[tuple[int, ...], int], Tensor] = {}
    found, told = [], bool(told_prompt(engine.inputs, 1, 0))
    for name, steps in (ways or every).items():
        prompt = (steps[0] if name in (WRITTEN, IN_TURNS) else TOLD) if told else 0
        like = steps if program is not None and name != PADDED else (ids.shape[1],), prompt
        if like not in known:
            known[like] = logits_of(yardstick, ids, mask, *like)
        ends = torch.tensor(steps).cumsum(0) - 1 if name in (WRITTEN, IN_TURNS) else torch.arange(ids.shape[1])
        got = _FEEDERS.get(name, partial(logits_of, prompt=prompt))(fed, ids, mask, steps)
        want, here = known[like][:, ends], read[:, ends]
        way = Way(name, steps, apart(got[here], want[here]))
        asked = name == PADDED and untouched is not None and not at_most(way.deviation, tolerance.deviation)
        if asked and untouched and _reads_before(Beside.of(untouched(), sample), ids, mask, tolerance):
            first = torch.tensor(PADDED_CALLS[0])[:, None] > 0  # before the others stands padding
            way = Way(name, steps, apart(got[here & first], want[here & first]), READS_BEFORE)
        found.append(way)
    return Consistency(tolerance.deviation, tuple(found), program is not None, decided)


def _every_way(engine: Engine, calls: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
    """The ways, and those that the engine writes itself where it can: the longest prompt of them, then token by token;
    of a short text also beside others."""
    recurrent = fixed_inputs(engine.inputs) and are_plain(engine.inputs)
    if recurrent and calls.get(SINGLY) == WAYS[SINGLY]:  # where each call counts, padding does too
        widths = tuple(max(map(abs, counts)) for counts in PADDED_CALLS)
        if all(engine.holds({**SIZES, SEQUENCE: n, PAST: sum(widths[:k])}) for k, n in enumerate(widths)):
            calls = {**calls, PADDED: widths}
    if not hasattr(engine, "continuation") or not is_decoder(engine):
        return calls
    steps = max((steps for steps in calls.values() if len(steps) > 1), key=lambda steps: steps[0], default=())
    if not steps:
        return calls
    single = sum(steps) - steps[0]
    beside = {IN_TURNS: (steps[0], *[1] * min(single, STEPS_IN_TURNS))} if sum(steps) <= SIZES[SEQUENCE] else {}
    return {**calls, WRITTEN: (steps[0], *[1] * single), **beside}


def _reads_before(engine: Engine, ids: Tensor, mask: Tensor, tolerance: Tolerance) -> bool:
    """Whether padding before a text changes what is said of it: of the first of these, which has none."""
    hidden = mask[:1].clone()
    hidden[:, 0] = 0
    padded = logits_of(engine, ids[:1], hidden, (ids.shape[1],))[:, 1:]
    alone = logits_of(engine, ids[:1, 1:], mask[:1, 1:], (ids.shape[1] - 1,))
    return not at_most(apart(padded, alone), tolerance.deviation)


def moves(deviation: float, tolerance: float) -> bool:
    """Whether the untouched model says something else itself in a way, so far from one go. After approximate passes
    only those ways are compared with the passes' own program; in the others passes made the difference."""
    return not at_most(deviation, OWN * tolerance)


def _without(way: Way) -> str:
    return f" (without {way.left_out})" if way.left_out else ""


def apart(got: Tensor, want: Tensor) -> float:
    """max |d|/std of two tensors of one shape; 0 of nothing, infinite where anything is not finite."""
    error, spread = (got - want).abs(), float(want.std(correction=0)) or 1.0
    if not error.numel():
        return 0.0
    return float(error.max()) / spread if bool(error.isfinite().all()) else float("inf")


_FEEDERS = {WRITTEN: written, IN_TURNS: in_turns, PADDED: with_padding}
