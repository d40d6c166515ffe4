"""At which sizes an engine is proven: a few of every kind, then both sides of each bound that the model shows, its full
context, and caches as long; and what a proof cannot afford, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from moec.execution.memory import total_bytes
from moec.frontend.source import Source
from moec.program.decoder_signature import PAST, SEQUENCE, cache_inputs
from moec.program.encoder_decoder import with_encoder
from moec.program.program import Input, Program, dynamic_dimensions
from moec.proof.bounds import Bound, find_bounds, table_lengths
from moec.proof.costs import Cost, Costs

# (batch, length) of the samples: none of batch 3 or length 11, which captures use; one token; rows with padding; one
# long; batches of 1, 2, 5 and 9, since kernels and wrong engines change with them
_SIZES = ((2, 7), (1, 1), (1, 13), (5, 4), (9, 2), (2, 37))
# (batch, new tokens, tokens in the cache) of a decoder's: several texts continued by several tokens and by one, with
# and without a cache, and a prompt long enough for the kernels that engines keep for those
_DECODER_SIZES = ((2, 7, 6), (1, 1, 12), (1, 1, 0), (1, 13, 9), (5, 4, 0), (9, 2, 17), (4, 37, 0), (2, 131, 0))
NEW = 3  # tokens that continue a cache up to a bound
UNKNOWN = 512  # tokens that a text has at most where nothing of the model says how long it may be
MOST_BOUNDS = 8  # of which both sides are run
# FLOPs of all long inputs together, on each side, which runs each of them twice: what some seconds compute; and as much
# as a text of so many tokens takes in a larger model
FLOPS, TOKENS = 2.5e11, 256
MOST_FED, FED_SHARE = 3, 4  # bounds past which a text is fed in pieces, and the share of the FLOPs that one may take


def verification_sizes(inputs: Sequence[Input], scale: Mapping[str, int] | None = None) -> list[dict[str, int]]:
    """Sizes of the dynamic dimensions to verify at, all unlike the capture's; `scale` is that of the source.

    The first dynamic dimension of the first input that has one is taken as the batch, the others as lengths; different
    lengths get different sizes, so that a mix-up of two cannot go unnoticed.
    """
    names = dynamic_dimensions(inputs)
    if cache_inputs(inputs):
        cached = [{"batch": batch, SEQUENCE: length, PAST: past} for batch, length, past in _DECODER_SIZES]
        return [with_encoder(names, sizes) for sizes in cached]
    sizes = [
        {
            n: batch if k == 0 else (length if length == 1 else length + 2 * (k - 1)) * (scale or {}).get(n, 1)
            for k, n in enumerate(names)
        }
        for batch, length in _SIZES
    ]
    return [s for k, s in enumerate(sizes) if s not in sizes[:k]]


@dataclass(frozen=True)
class Beyond:
    """What a proof did not look at, and why."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what} ({self.why})"


@dataclass(frozen=True)
class Budget:
    """What the long inputs of a proof may take.

    Attributes:
        flops: of all of them together, on one side.
        bytes: of each, for values in memory.
    """

    flops: float
    bytes: float

    @classmethod
    def of(cls, costs: Costs, inputs: Sequence[Input]) -> Budget:
        """`FLOPS` and `TOKENS` tokens' worth of products; an eighth of this machine's memory."""
        one = costs.of(dict.fromkeys(dynamic_dimensions(inputs), 1) | {PAST: 0})
        return cls(FLOPS + TOKENS * one.flops, total_bytes() / 8)

    def holds(self, cost: Cost, spent: float = 0.0) -> bool:
        """Whether a run fits after `spent` FLOPs."""
        return cost.flops + spent <= self.flops and cost.bytes <= self.bytes

    def __str__(self) -> str:
        return f"{self.flops:.1e} FLOPs in all and {self.bytes / 2**30:.1f} GiB are allowed"


@dataclass
class SizePlan:
    """The sizes of a proof.

    Attributes:
        near: small ones of every kind; a search for experts starts from them.
        far: on both sides of each bound, at the full context, with long caches. Each is run once.
        whole: those of the far ones that reach the end of the context.
        bounds: what the model shows.
        cached: bounds past which a decoder's text is fed in pieces.
        context: tokens of the longest text; 0 where no dimension is a length.
        beyond: what was left out.
    """

    near: list[dict[str, int]]
    far: list[dict[str, int]] = field(default_factory=list)
    whole: list[dict[str, int]] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    context: int = 0
    beyond: list[Beyond] = field(default_factory=list)


def named(sizes: Mapping[str, int]) -> str:
    """`batch=1, sequence=1`."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "fixed sizes"


class Planner:
    """Chooses the sizes of a proof from a model: `plan` holds them.

    Args:
        source: the model; its config's lengths are bounds.
        program: as captured; its graph and its conditions show bounds, and what runs cost.
        streamed: whether each run reads all weights anew: then one long input is run.
        budget: what long inputs may take; by default what is documented at `Budget.of`.
    """

    def __init__(self, source: Source, program: Program, streamed: bool = False, budget: Budget | None = None) -> None:
        self.inputs, self.streamed = source.inputs, streamed
        self.names, self.cached = dynamic_dimensions(source.inputs), bool(cache_inputs(source.inputs))
        self.costs, self._spent = Costs(program), 0.0
        self.budget = budget or Budget.of(self.costs, source.inputs)
        self._edges = program.edges
        self.plan = SizePlan(verification_sizes(source.inputs, source.scale))
        if len(self.names) > 1:
            self.plan.bounds = find_bounds(source, program)
            self.plan.context = self._context(source, program)
        self._choose()

    def _context(self, source: Source, program: Program) -> int:
        """What the config says, else the shortest table of positions; else a little past the largest bound."""
        tables = table_lengths(source, program)
        lengths = [b.size for b in self.plan.bounds if b.dimension != self.names[0]]
        return source.facts().context or min(tables, default=0) or max([UNKNOWN, *(2 * n for n in lengths)])

    @property
    def lengths(self) -> list[Bound]:
        """Bounds of a length within the context, the context last; `MOST_BOUNDS` of them."""
        return [*self._within[: MOST_BOUNDS - 1], Bound(self.plan.context, "the full context")]

    @property
    def _within(self) -> list[Bound]:
        return [b for b in self.plan.bounds if b.size < self.plan.context and b.dimension != self._batch]

    @property
    def _batch(self) -> str:
        return self.names[0] if self.names else "batch"

    def _choose(self) -> None:
        batches = list(self._batches())
        caches, texts = (list(self._caches()), list(self._texts())) if self.plan.context else ([], [])
        batches += [dict(edge) for edge in self._edges if set(edge) == set(self.names)]
        self.plan.cached = [] if self.streamed or not caches else self._fed()
        if self.streamed:
            self._choose_one([*caches, *reversed(texts), *batches])
            self._leave_out()
            return
        for sizes in (*batches, *caches, *texts):
            self._take(sizes)
        if self.plan.context:
            self._shorten(caches)
            self.plan.whole = [self.text(self.plan.context), self.cache(self.plan.context)]
        self._leave_out()

    def _choose_one(self, wanted: list[dict[str, int]]) -> None:
        """The first that can be afforded, where each run reads all weights anew."""
        one = next((s for s in wanted if self._take(s)), None)
        tried = [named(s) for s in wanted if s is not one and s not in self.plan.near]
        known = {b.what for b in self.plan.beyond}
        self.plan.beyond += [Beyond(n, "each run reads all weights anew") for n in tried if n not in known]

    def _take(self, sizes: dict[str, int]) -> bool:
        """Run these sizes unless they cost too much; whether they are run."""
        if sizes in self.plan.near or sizes in self.plan.far:
            return True
        cost = self.costs.of(sizes)
        if not self.budget.holds(cost, self._spent):
            self.plan.beyond.append(Beyond(named(sizes), f"takes {cost}; {self.budget}"))
            return False
        self._spent += cost.flops
        self.plan.far.append(sizes)
        return True

    # ------------------------------------------------------------------ what is wanted, most telling first
    def _batches(self) -> Iterator[dict[str, int]]:
        """Both sides of bounds on the number of texts."""
        for bound in self.plan.bounds:
            if bound.dimension == self._batch:
                for batch in (bound.size, bound.size + 1):
                    yield {**self.plan.near[0], self._batch: batch}

    def _caches(self) -> Iterator[dict[str, int]]:
        """A few new tokens after caches that end at a bound, and one after it; the full context first."""
        for bound in reversed(self.lengths) if self.cached else ():
            yield self.cache(bound.size)
            yield with_encoder(self.names, {self._batch: 2, SEQUENCE: 1, PAST: bound.size})

    def cache(self, length: int) -> dict[str, int]:
        """Two texts of this length, all but the last tokens in the cache."""
        new = min(NEW, length)
        return with_encoder(self.names, {self._batch: 2, SEQUENCE: new, PAST: length - new})

    def _texts(self) -> Iterator[dict[str, int]]:
        """Whole texts of as many tokens as a bound, and of one more; short ones first."""
        for bound in self.lengths:
            yield self.text(bound.size)
            yield self.text(bound.size + 1)

    def text(self, length: int) -> dict[str, int]:
        """One text of this length; of several lengths, each is two tokens shorter than the one before."""
        others = [n for n in self.names if n not in (self._batch, PAST)]
        found = {n: max(1, length - 2 * k) for k, n in enumerate(others)}
        return {self._batch: 1, **found} | ({PAST: 0} if self.cached else {})

    def _fed(self) -> list[int]:
        """The smallest bounds, and the context, where two texts as long take no more than a share of the budget."""
        share = Budget(self.budget.flops / FED_SHARE, self.budget.bytes)
        lengths = [b.size for b in self.lengths]
        wanted = [*lengths[:-1][: MOST_FED - 1], lengths[-1]]
        found = [n for n in wanted if share.holds(self.costs.of({**self.text(n), self._batch: 2}))]
        left = [n for n in wanted if n not in found]
        why = f"takes more than a part in {FED_SHARE} of what is allowed"
        self.plan.beyond += [Beyond(f"a text of {n:,} tokens in pieces", why) for n in left]
        return found

    # ------------------------------------------------------------------ what is left
    def _shorten(self, caches: Sequence[Mapping[str, int]]) -> None:
        """Take the longest text, and the longest cache, that can be afforded where the full context is too long; say
        which positions no input has."""
        plan = self.plan
        for make in (self.text, *([self.cache] if caches else [])):
            lengths = [2**k for k in range((plan.context - 1).bit_length() - 1, 7, -1)]
            if make(plan.context) not in plan.far:
                fit = (make(n) for n in lengths if self.budget.holds(self.costs.of(make(n)), self._spent))
                self._take(next(fit, plan.near[0]))
        if self.text(plan.context) not in plan.far:
            plan.beyond.insert(0, self._unseen())

    def _unseen(self) -> Beyond:
        """The positions that no whole text has, and those of them that tokens after a drawn cache have."""
        plan = self.plan
        whole = max(_tokens(s) for s in (*plan.near, *plan.far) if not s.get(PAST))
        ends = sorted({(s[PAST], _tokens(s)) for s in plan.far if s.get(PAST) and _tokens(s) > whole})
        but = ", ".join(f"{a:,} to {b - 1:,}" if b - 1 > a else f"{a:,}" for a, b in ends)
        cost = self.costs.of(self.text(plan.context))
        what = f"positions {whole:,} to {plan.context - 1:,}" + (f", but for {but}, after drawn caches" if but else "")
        return Beyond(what, f"a text of them takes {cost}; {self.budget}")

    def _leave_out(self) -> None:
        plan = self.plan
        for bound in self._within[MOST_BOUNDS - 1 :]:
            plan.beyond.append(Beyond(f"both sides of {bound.size:,}", f"{bound.name}; {MOST_BOUNDS} bounds are run"))
        if plan.context and all(b.size != plan.context for b in plan.bounds):
            why = "nothing of the model says how long they may be"
            plan.beyond.append(Beyond(f"texts of more than {plan.context + 1:,} tokens", why))


def _tokens(sizes: Mapping[str, int]) -> int:
    """Tokens of one text, those of its cache too."""
    return sizes.get(PAST, 0) + max((n for k, (name, n) in enumerate(sizes.items()) if k and name != PAST), default=1)


def plan_sizes(source: Source, program: Program, streamed: bool = False, budget: Budget | None = None) -> SizePlan:
    """The sizes of a proof, see `Planner`."""
    return Planner(source, program, streamed, budget).plan


def contract_sizes(source: Source, program: Program) -> list[dict[str, int]]:
    """Sizes at which passes are held to their contracts: a small one, and one past every window of the model, where
    that is cheap: a cache of the full context, or a text past the last bound before it."""
    planner = Planner(source, program)
    plan, lengths = planner.plan, planner.lengths[:-1] if planner.plan.context else []
    first = plan.near[0]
    if planner.cached:
        long = [s for s in plan.far if s == planner.cache(plan.context)]
        return [first, *long[:1]]
    past = [planner.text(b.size + 2) for b in lengths[-1:]]
    return [first, *(s for s in past if planner.budget.holds(planner.costs.of(s)))]
