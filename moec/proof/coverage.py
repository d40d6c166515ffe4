"""Which experts a set of inputs reaches, and a search for inputs that reach all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from moec.dialect import Routing
from moec.execution.choices import choice, logits_of
from moec.execution.trace import trace
from moec.program.moe_call import EXPERTS, MOE, moe_nodes
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.program.signature import Sample
from moec.proof.decided_tokens import NOISE, compared_tokens, hanging


@dataclass(frozen=True)
class ExpertLoad:
    """What one mixture-of-experts block was given.

    Attributes:
        node: the operator's name in the graph. module: the dotted name of the module that it came from.
        assignments: how many (token, expert) pairs with a weight other than 0 each expert got, over all samples.
    """

    node: str
    module: str
    assignments: tuple[int, ...]

    @property
    def missed(self) -> tuple[int, ...]:
        """Experts that no input reached."""
        return tuple(e for e, n in enumerate(self.assignments) if n == 0)

    @property
    def reached(self) -> int:
        """How many experts were reached."""
        return len(self.assignments) - len(self.missed)


@dataclass(frozen=True)
class Coverage:
    """Which experts the samples of a verification reached.

    Attributes:
        loads: one entry a block, in graph order; none for a program without experts.
        samples: inputs that were kept. tried: inputs that were looked at.
        tokens: tokens that the blocks routed, over all blocks and kept samples.
        undecided: of these, tokens whose choice flips when the router's logits change by 1e-5 of the largest: there,
            the reference itself depends on rounding. Counted where the program holds the routing as an operator.
    """

    loads: tuple[ExpertLoad, ...]
    samples: int
    tried: int
    tokens: int
    undecided: int

    @property
    def reached(self) -> int:
        """Experts reached, over all blocks."""
        return sum(load.reached for load in self.loads)

    @property
    def total(self) -> int:
        """Experts, over all blocks."""
        return sum(len(load.assignments) for load in self.loads)

    @property
    def complete(self) -> bool:
        """Whether every expert of every block was reached."""
        return self.reached == self.total

    def __str__(self) -> str:
        if not self.loads:
            return "no experts"
        missed = "; ".join(
            f"{load.module or load.node}: {', '.join(map(str, load.missed))}" for load in self.loads if load.missed
        )
        return f"{self.reached}/{self.total} experts reached with {self.samples} inputs" + (
            f", not reached: {missed}" if missed else ""
        )


@dataclass
class RunLoad:
    """Counts of one run: expert assignments by node name, tokens, and tokens whose choice hangs on rounding."""

    assignments: dict[str, Tensor]
    tokens: int = 0
    undecided: int = 0

    def adds_to(self, others: Sequence[RunLoad]) -> bool:
        """Whether this run reached an expert that the others did not."""
        seen = _total(others)
        return any(bool(((n > 0) & (seen[name] == 0)).any()) for name, n in self.assignments.items())


def measure_load(program: Program, samples: Sequence[Sample]) -> Coverage:
    """Which experts these samples reach, and how often."""
    return summarize(program, [run_load(program, sample) for sample in samples], len(samples))


def _total(records: Sequence[RunLoad]) -> dict[str, Tensor]:
    return {name: torch.stack([r.assignments[name] for r in records]).sum(0) for name in records[0].assignments}


def missed_any(records: Sequence[RunLoad]) -> bool:
    """Whether some expert was reached by none of these runs."""
    return any(bool((n == 0).any()) for n in _total(records).values())


def run_load(program: Program, sample: Sample) -> RunLoad:
    """Run a program and count what its MoE operators choose."""
    record = RunLoad({})
    compared = compared_tokens([], sample, program.inputs[0].name, causal=True)  # of padding nothing is compared

    def watch(node: fx.Node, _value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if routing := logits_of(node, args, kwargs):
            record.undecided += undecided(*routing)
        if node.target in (EXPERTS, MOE):
            weights, ids, count = choice(node, args, kwargs)
            rows = compared.rows(len(ids))
            record.assignments[node.name] = torch.bincount(ids[rows][weights[rows] != 0].flatten(), minlength=count)
            record.tokens += int(rows.sum())

    if moe_nodes(program):
        trace(program, sample, watch)
    return record


def undecided(logits: Tensor, bias: Tensor | None, rule: Routing) -> int:
    """How many tokens choose other experts when their logits change by what rounding in float32 may change them, in the
    worst direction."""
    return int(hanging(logits, bias, rule, NOISE[torch.float32]).sum())


def summarize(program: Program, records: Sequence[RunLoad], tried: int) -> Coverage:
    """The coverage of these runs together; `tried` inputs were looked at to find them."""
    total = _total(records)
    loads = tuple(ExpertLoad(n.name, module_path(n), tuple(int(c) for c in total[n.name])) for n in moe_nodes(program))
    return Coverage(loads, len(records), tried, sum(r.tokens for r in records), sum(r.undecided for r in records))
