"""Inputs to prove an engine on: tokens that reach every expert, tokens whose experts are decided; their sizes are
`moec.proof.sizes`' to choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moec.execution.memory import total_bytes
from moec.frontend.source import Source
from moec.program.decoder_signature import HELD
from moec.program.program import Input, Program
from moec.program.signature import Sample
from moec.proof.climb import Climb
from moec.proof.coverage import Coverage, RunLoad, missed_experts, run_load, summarize
from moec.proof.decided_tokens import NOISE, ComparedTokens, Decided, is_causal, look
from moec.proof.reach import BY_HAND, Reach
from moec.proof.sizes import verification_sizes
from moec.recognition.linear import value_of

_SHORT = 13  # tokens of a text, about, that a search for decided ones looks at
FRUITLESS = 6  # inputs in succession that reach no new expert, after which a search that costs much ends
_ROWS = 8  # batch of the inputs that search: one run of a large model takes little longer for more tokens
_FEWEST = 2  # of them, where memory is scarce: what the sizes to verify at hold, too
_COMPARED = 4  # outputs at a time: of both engines, with padding and without


def reach_experts(
    program: Program,
    source: Source,
    sizes: Sequence[Mapping[str, int]] = (),
    seed: int = 0,
    tries: int = 48,
    holds: Callable[[Sample], bool] = lambda _sample: True,
    patient: bool = True,
    among: Sequence[Mapping[str, int]] | None = None,
    in_memory: bool = True,
) -> tuple[list[Sample], Coverage]:
    """Find inputs that together reach every expert of a program.

    One random input of each of `sizes` (default: `verification_sizes`) is always kept; of three seeds, the one with the
    fewest choices that hang on rounding. Then up to `tries` more are looked at, larger ones (sweeps over the
    vocabulary, one token repeated, scaled floats), until all are reached, and kept when they reach an expert that none
    did before. At last, as many changed copies of those that almost reached one (`moec.proof.climb`).

    Args:
        holds: whether the engine takes an input; others are not looked at.
        patient: whether the search goes on after `FRUITLESS` inputs in succession that reached nothing new.
        among: sizes of which the search takes the one of the most tokens; by default all that a proof may look at.
        in_memory: whether the program's weights fit there, so that it can be asked what each adds to the outputs
            (`moec.proof.reach`). Without it, mixtures in plain operators count as not reached.
    """
    sizes = sizes or verification_sizes(source.inputs, source.scale)
    among = verification_sizes(source.inputs, source.scale) if among is None else among
    searched = _most_tokens(among, source, holds) or sizes[-1]
    rows = searched_rows(program, searched)
    found = _Search(program, source, [_decided(program, source, s, seed + 100 * i) for i, s in enumerate(sizes)], seed,
                    Reach(program) if in_memory else None, rows)  # fmt: skip
    drawn = filter(holds, _candidates(source, found.vocabulary, _wide(searched, rows), seed, tries))
    for candidates in (drawn, filter(holds, found.near_ones(tries))):
        found.fruitless = 0
        for candidate in candidates:
            if not found.searches or (found.fruitless == FRUITLESS and not patient):
                break
            found.look(candidate)
    return found.samples, found.coverage()


class _Search:
    """The inputs that were kept, what they reach, and how many were looked at."""

    def __init__(
        self,
        program: Program,
        source: Source,
        first: Sequence[tuple[Sample, RunLoad]],
        seed: int,
        reach: Reach | None,
        rows: int,
    ) -> None:
        self._program, self._reach = program, reach
        self.samples, self._records = [s for s, _ in first], [r for _, r in first]
        self.tried, self.fruitless = len(first), 0
        self.vocabulary = {i.name: high for i in source.inputs if (high := _vocabulary(program, source, i))}
        self._climb = Climb(source, self.vocabulary, seed, rows)
        for sample, record in first:
            self._climb.learn(sample, record.near)
            if reach is not None:
                reach.look(sample)

    @property
    def _by_hand(self) -> bool:
        return self._reach is not None and self._reach.searches

    @property
    def searches(self) -> bool:
        """Whether an expert is still to be reached."""
        return bool(missed_experts(self._records)) or self._by_hand

    def look(self, candidate: Sample) -> None:
        """Look at one more input, and keep it if it reaches an expert that none did."""
        record = run_load(self._program, candidate)
        self._climb.learn(candidate, record.near)
        self.tried, self.fruitless = self.tried + 1, self.fruitless + 1
        adds = record.adds_to(self._records)
        if self._reach is not None and (adds or self._by_hand):
            adds |= self._reach.look(candidate)
        if adds:
            self.samples.append(candidate)
            self._records.append(record)
            self.fruitless = 0

    def near_ones(self, tries: int) -> Iterator[Sample]:
        """Up to `tries` changed copies of inputs that almost reached an expert that is missed."""
        for _ in range(tries):
            candidate = self._climb.propose(missed_experts(self._records))
            if candidate is None:
                return
            yield candidate

    def coverage(self) -> Coverage:
        """What the kept inputs reach."""
        return summarize(self._program, self._records, self.tried, self._reach, self.samples)


def _vocabulary(program: Program, source: Source, spec: Input) -> int:
    """How many values an input of tokens may take: the rows of the tables in which it is looked up; 0 for one that is
    no token."""
    domain = source.domains.get(spec.name)
    if spec.dtype.is_floating_point or domain is None or domain.kind not in ("token", "number"):
        return 0
    node = next(n for n in program.graph.nodes if n.op == "placeholder" and n.target == spec.identifier)
    tables = [value_of(u.args[0]).shape[0] for u in node.users if u.target is torch.ops.aten.embedding.default]
    return int(min(tables)) if tables else domain.high if domain.kind == "token" else 0


def _most_tokens(
    sizes: Sequence[Mapping[str, int]], source: Source, holds: Callable[[Sample], bool]
) -> Mapping[str, int] | None:
    """The size of the most tokens that the engine takes: whatever is compared, a search wants many tokens a run."""
    taken = [s for s in sizes if holds(source.sample({**s, **_wide(s)}))]
    return max(taken, key=lambda s: math.prod(n for name, n in s.items() if name not in HELD), default=None)


def _wide(sizes: Mapping[str, int], rows: int = _ROWS) -> dict[str, int]:
    """The sizes with a larger batch, the first of them."""
    return {name: rows if k == 0 else size for k, (name, size) in enumerate(sizes.items())}


def compared_bytes(program: Program, sizes: Mapping[str, int]) -> int:
    """What the widest output takes while two engines are compared at these sizes: both, and each without padding."""
    widest = max((d for o in program.output_signature() for d in o.shape[-1:] if isinstance(d, int)), default=1)
    return _COMPARED * 4 * widest * math.prod(n for name, n in sizes.items() if name not in HELD)


def searched_rows(program: Program, sizes: Mapping[str, int]) -> int:
    """Rows of an input that a search looks at: fewer where an eighth of the memory does not hold their outputs."""
    return max(_FEWEST, min(_ROWS, total_bytes() // 8 // compared_bytes(program, _wide(sizes, 1))))


@dataclass(frozen=True)
class DecidedInputs:
    """Inputs for a proof in half precision: the tokens of each that can be compared, which experts these reach, and how
    many of all they are."""

    samples: list[Sample]
    tokens: list[ComparedTokens]
    coverage: Coverage
    decided: Decided


def reach_decided(
    program: Program,
    source: Source,
    sizes: Sequence[Mapping[str, int]],
    precision: torch.dtype,
    seed: int = 0,
    tries: int = 48,
    full: Coverage | None = None,
    holds: Callable[[Sample], bool] = lambda _sample: True,
) -> DecidedInputs:
    """`reach_experts`, where only tokens count whose experts are decided in `precision`, and that see no undecided one.

    Of three seeds, an input is taken with most of its tokens; the search goes on with short texts, in which few tokens
    see many.

    Args:
        full: experts that inputs reach at all; one among them that no such token reaches is counted in `Decided.lost`.
        holds: whether the engine takes an input; others are not looked at.
    """
    causal = is_causal(program, source.sample(max(sizes, key=lambda s: sum(s.values())), seed))
    noise, searched = NOISE[precision], min(sizes, key=lambda s: abs(sum(s.values()) - _SHORT))
    found = [_most_decided(program, source, s, seed + 100 * i, noise, causal) for i, s in enumerate(sizes)]
    records, tried = [RunLoad.of(load, t.count) for _, t, load in found], len(found)
    vocabulary = {i.name: high for i in source.inputs if (high := _vocabulary(program, source, i))}
    wide = _wide(searched, searched_rows(program, searched))
    for candidate in filter(holds, _candidates(source, vocabulary, wide, seed, tries)):
        if not missed_experts(records):
            break
        tokens, load = look(program, candidate, noise, causal)
        record, tried = RunLoad.of(load, tokens.count), tried + 1
        if record.adds_to(records):
            found.append((candidate, tokens, load))
            records.append(record)
    coverage = summarize(program, records, tried)
    decided = Decided(
        str(precision)[6:],
        noise,
        sum(t.count for _, t, _ in found),
        sum(t.total for _, t, _ in found),
        _lost(coverage, full),
    )
    return DecidedInputs([s for s, _, _ in found], [t for _, t, _ in found], coverage, decided)


def most_decided(
    program: Program, source: Source, sizes: Mapping[str, int], precision: torch.dtype, seed: int
) -> tuple[Sample, ComparedTokens]:
    """A random input of these sizes, of three seeds the one of which most can be compared, and what that is."""
    causal = is_causal(program, source.sample(sizes, seed))
    return _most_decided(program, source, sizes, seed, NOISE[precision], causal)[:2]


def _most_decided(
    program: Program, source: Source, sizes: Mapping[str, int], seed: int, noise: float, causal: bool
) -> tuple[Sample, ComparedTokens, dict[str, Tensor]]:
    samples = [source.sample(sizes, seed + attempt) for attempt in range(3)]
    return max(((s, *look(program, s, noise, causal)) for s in samples), key=lambda found: found[1].count)


def _lost(coverage: Coverage, full: Coverage | None) -> int:
    """Experts that were reached, and are not by tokens that are compared."""
    before = {load.node: set(load.missed) for load in full.loads} if full else {}
    return sum(len(set(load.missed) - before[load.node]) for load in coverage.loads if full and load.node != BY_HAND)


def decided_sample(program: Program, source: Source, sizes: Mapping[str, int], seed: int) -> Sample:
    """A random input of these sizes; of three seeds, the one with the fewest choices of experts that hang on
    rounding."""
    return _decided(program, source, sizes, seed)[0]


def _decided(program: Program, source: Source, sizes: Mapping[str, int], seed: int) -> tuple[Sample, RunLoad]:
    """The first of three seeds without a choice that hangs on rounding, else the one with the fewest."""
    best: tuple[Sample, RunLoad] | None = None
    for attempt in range(3):
        sample = source.sample(sizes, seed + attempt)
        record = run_load(program, sample)
        if best is None or record.hanging < best[1].hanging:
            best = sample, record
        if not record.hanging:
            break
    assert best is not None
    return best


def _candidates(
    source: Source, vocabulary: Mapping[str, int], sizes: Mapping[str, int], seed: int, tries: int
) -> Iterator[Sample]:
    """Inputs unlike each other: sweeps over the vocabulary, single repeated tokens, floats of other magnitudes, random
    ones."""
    floats = [i.name for i in source.inputs if i.dtype.is_floating_point]
    for attempt in range(tries):
        sample = source.sample(sizes, seed + 1000 + attempt)
        if attempt % 3 != 2:
            sample |= {name: _sweep(sample[name], high, attempt // 3, seed) for name, high in vocabulary.items()}
        if attempt % 3 == 1:  # one token a row: what an expert gets may hang on the token alone
            sample |= {name: sample[name][..., :1].expand_as(sample[name]).contiguous() for name in vocabulary}
        if attempt % 2:
            sample |= {name: sample[name] * (0.1, 3.0, 10.0)[attempt // 2 % 3] for name in floats}
        yield sample


def _sweep(like: Tensor, vocabulary: int, number: int, seed: int) -> Tensor:
    """The `number`-th block of a random order of the whole vocabulary: no token twice before all were there once."""
    order = torch.randperm(
        vocabulary, generator=torch.Generator().manual_seed(seed + number * like.numel() // vocabulary)
    )
    place = torch.arange(number * like.numel(), (number + 1) * like.numel()) % vocabulary
    return order[place].view_as(like).to(like.dtype)
