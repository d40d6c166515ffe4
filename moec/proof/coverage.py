"""Which experts a set of inputs reaches, and a search for inputs that reach all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from moec.dialect import Capacity, Routing
from moec.execution.choices import choice, logits_of, room_of
from moec.execution.trace import trace
from moec.program.moe_call import EXPERTS, MOE, moe_nodes
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.program.signature import Sample
from moec.proof.chosen_experts import hanging
from moec.proof.chosen_keys import hanging_choice, key_choices
from moec.proof.climb import nearness
from moec.proof.decided_tokens import NOISE, compared_tokens
from moec.proof.reach import BY_HAND, Block, Reach, hand_written
from moec.recognition.hand_written import find_hand_written

# A token's weight that is less than this share of its largest counts for nothing, nor does a token whose largest is
# less than that share of the block's: negated, the expert would change the block's output by less than rounding in half
# precision.
FAINT, FAINT_TOKEN = 1e-2, 1e-3


@dataclass(frozen=True)
class ExpertLoad:
    """What one mixture-of-experts block was given.

    Attributes:
        node: the operator's name in the graph, or `written by hand` where plain operators make the mixture. module: the
            dotted name of the module that it came from.
        assignments: how many (token, expert) pairs with a weight other than 0 each expert got, over all samples. Of a
            mixture in plain operators, whose tokens are not counted: 1 for an expert that was reached.
        faint: experts that tokens reach so weakly that a comparison would not see them negated.
        driven: experts that no input reached, and that agree on rows which the block's router sends to them.
        wrong: those that don't agree there.
    """

    node: str
    module: str
    assignments: tuple[int, ...]
    faint: tuple[int, ...] = ()
    driven: tuple[int, ...] = ()
    wrong: tuple[int, ...] = ()

    @property
    def unreached(self) -> tuple[int, ...]:
        """Experts that no input reached so that a comparison would see them spoiled."""
        return tuple(e for e, n in enumerate(self.assignments) if n == 0 or e in self.faint)

    @property
    def missed(self) -> tuple[int, ...]:
        """Experts of which nothing is proven: no input reached them, and they were not driven directly."""
        return tuple(e for e in self.unreached if e not in (*self.driven, *self.wrong))

    @property
    def reached(self) -> int:
        """How many experts inputs reached."""
        return len(self.assignments) - len(self.unreached)

    @property
    def place(self) -> str:
        """The block's name for people."""
        return self.module or (self.node if self.node != BY_HAND else "the model")


@dataclass(frozen=True)
class Coverage:
    """Which experts the samples of a verification reached.

    Attributes:
        loads: one entry a block, in graph order; none for a program without experts.
        samples: inputs that were kept. tried: inputs that were looked at.
        tokens: tokens that the blocks routed, over all blocks and kept samples.
        undecided: of these, tokens whose choice flips when the router's logits change by 1e-5 of the largest: there,
            the reference itself depends on rounding. Counted where the program holds the routing as an operator.
        unused: names of other matrices that no input reached, so that any numbers may stand in them.
    """

    loads: tuple[ExpertLoad, ...]
    samples: int
    tried: int
    tokens: int
    undecided: int
    unused: tuple[str, ...] = ()

    @property
    def reached(self) -> int:
        """Experts that inputs reached, over all blocks."""
        return sum(load.reached for load in self.loads)

    @property
    def total(self) -> int:
        """Experts, over all blocks."""
        return sum(len(load.assignments) for load in self.loads)

    @property
    def driven(self) -> int:
        """Experts that were driven directly, over all blocks."""
        return sum(len(load.driven) for load in self.loads)

    @property
    def complete(self) -> bool:
        """Whether every expert of every block is proven, and every other matrix was reached."""
        return not any(load.missed or load.wrong for load in self.loads) and not self.unused

    @property
    def counted(self) -> tuple[ExpertLoad, ...]:
        """The blocks that are operators, whose routers' choices can be looked at."""
        return tuple(load for load in self.loads if load.node != BY_HAND)

    @property
    def every(self) -> str:
        """What a complete coverage says of the experts."""
        return "every expert reached" + (f" ({self.driven} of {self.total} driven directly)" if self.driven else "")

    def with_effects_of(self, other: Coverage) -> Coverage:
        """This coverage, with what `other` found out beyond counting: experts that are too weak to be seen, mixtures in
        plain operators, other matrices."""
        weak = {load.node: load.faint for load in other.loads}
        loads = (replace(load, faint=weak.get(load.node, ())) for load in self.loads if load.node != BY_HAND)
        by_hand = (load for load in other.loads if load.node == BY_HAND)
        return replace(self, loads=(*loads, *by_hand), unused=other.unused)

    def __str__(self) -> str:
        missed = "; ".join(f"{load.place}: {', '.join(map(str, load.missed))}" for load in self.loads if load.missed)
        parts = [f"{self.reached}/{self.total} experts reached with {self.samples} inputs"] if self.loads else []
        parts += [f"{self.driven} driven directly"] if self.driven else []
        parts += [f"{load.place}: {', '.join(map(str, load.wrong))} wrong" for load in self.loads if load.wrong]
        parts += [f"not reached: {missed}"] if missed else []
        parts += [f"reached by no input: {', '.join(self.unused)}"] if self.unused else []
        return ", ".join(parts) or "no experts"


@dataclass
class RunLoad:
    """Counts of one run: expert assignments by node name, those of them that count for something, how near each text
    came to each expert `[batch, E]`, tokens, and tokens whose choice of experts, or of keys, hangs on rounding."""

    assignments: dict[str, Tensor]
    strong: dict[str, Tensor] = field(default_factory=dict)
    near: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    undecided: int = 0
    undecided_keys: int = 0

    @classmethod
    def of(cls, assignments: dict[str, Tensor], tokens: int) -> RunLoad:
        """Counts that are all taken for strong."""
        return cls(assignments, assignments, tokens=tokens)

    @property
    def hanging(self) -> int:
        """Choices that hang on rounding."""
        return self.undecided + self.undecided_keys

    def adds_to(self, others: Sequence[RunLoad]) -> bool:
        """Whether this run reached an expert that the others did not."""
        seen = _total([r.strong for r in others])
        return any(bool(((n > 0) & (seen[name] == 0)).any()) for name, n in self.strong.items())


def measure_load(program: Program, samples: Sequence[Sample], reach: Reach | None = None) -> Coverage:
    """Which experts these samples reach, and how often; `reach`: see `summarize`."""
    for sample in samples if reach is not None else ():
        reach.look(sample)  # type: ignore[union-attr]
    return summarize(program, [run_load(program, sample) for sample in samples], len(samples), reach, samples)


def _total(counts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([c[name] for c in counts]).sum(0) for name in counts[0]}


def missed_experts(records: Sequence[RunLoad]) -> list[tuple[str, int]]:
    """The experts that were reached by none of these runs: block, number."""
    found = _total([r.strong for r in records])
    return [(name, e) for name, counts in found.items() for e, n in enumerate(counts.tolist()) if n == 0]


def run_load(program: Program, sample: Sample) -> RunLoad:
    """Run a program and count what its MoE operators choose."""
    record = RunLoad({})
    compared = compared_tokens([], sample, program.inputs[0].name, causal=True)  # of padding nothing is compared

    def watch(node: fx.Node, _value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if routing := logits_of(node, args, kwargs):
            record.undecided += undecided(*routing, room_of(node, args, kwargs))
            near, texts = nearness(*routing), len(compared.texts)
            if len(near) and len(near) % texts == 0:
                seen = near.masked_fill(~compared.rows(len(near))[:, None], -torch.inf)
                record.near |= dict.fromkeys(_routed_by(node), seen.view(texts, -1, near.shape[-1]).amax(1))
        keys = hanging_choice(node, args, NOISE[torch.float32])
        record.undecided_keys += 0 if keys is None else int(keys.sum())
        if node.target in (EXPERTS, MOE):
            weights, ids, count = choice(node, args, kwargs)
            rows = compared.rows(len(ids))
            ids, weights = ids[rows], weights[rows].abs()
            record.assignments[node.name] = torch.bincount(ids[weights != 0].flatten(), minlength=count)
            record.strong[node.name] = torch.bincount(ids[strong(weights)].flatten(), minlength=count)
            record.tokens += int(rows.sum())

    if moe_nodes(program) or key_choices(program):
        trace(program, sample, watch)
    return record


def _routed_by(node: fx.Node) -> list[str]:
    """The blocks that a router serves: itself, or those that its ids go to."""
    if node.target is MOE:
        return [node.name]
    return [user.name for part in node.users for user in part.users if user.target is EXPERTS]


def undecided(logits: Tensor, bias: Tensor | None, rule: Routing, room: Capacity | None = None) -> int:
    """How many tokens choose other experts when their logits change by what rounding in float32 may change them, in the
    worst direction."""
    return int(hanging(logits, bias, rule, NOISE[torch.float32], room).sum())


def strong(weights: Tensor) -> Tensor:
    """Which weights `[T, K]`, none negative, count for something in their token: bool `[T, K]`."""
    if not weights.numel():
        return weights > 0
    most = weights.amax(-1, keepdim=True)
    return (weights > 0) & (weights >= FAINT * most) & (weights >= FAINT_TOKEN * most.max())


def summarize(
    program: Program,
    records: Sequence[RunLoad],
    tried: int,
    reach: Reach | None = None,
    samples: Sequence[Sample] = (),
) -> Coverage:
    """The coverage of these runs together.

    Args:
        tried: how many inputs were looked at to find them.
        reach: what they reach so that a comparison would see it. Without one, where weights are read one at a time,
            experts count by their tokens' weights, and those of a mixture in plain operators count as not reached.
        samples: the inputs, to settle what `reach` left open.
    """
    total, firm = _total([r.assignments for r in records]), _total([r.strong for r in records])
    if reach is not None:
        reach.settle(samples)
    blocks = reach.blocks if reach is not None else [hand_written(found) for found in find_hand_written(program)]
    unseen = {block.node: set(reach.missed(block)) for block in blocks if block.fused} if reach is not None else {
        name: set(torch.nonzero(counts == 0).flatten().tolist()) for name, counts in firm.items()
    }  # fmt: skip
    loads = [_load(n, total[n.name], unseen.get(n.name, set())) for n in moe_nodes(program)]
    loads += [_by_hand(block, reach) for block in blocks if not block.fused]
    tokens, undecided = sum(r.tokens for r in records), sum(r.undecided for r in records)
    unused = reach.unused if reach is not None else ()
    return Coverage(tuple(loads), len(records), tried, tokens, undecided, unused)


def _load(node: fx.Node, assignments: Tensor, unseen: set[int]) -> ExpertLoad:
    counts = tuple(int(n) for n in assignments)
    return ExpertLoad(node.name, module_path(node), counts, tuple(e for e in sorted(unseen) if counts[e]))


def _by_hand(block: Block, reach: Reach | None) -> ExpertLoad:
    missed = range(len(block.experts)) if reach is None else reach.missed(block)
    return ExpertLoad(BY_HAND, block.module, tuple(int(e not in missed) for e in range(len(block.experts))))
