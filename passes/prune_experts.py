"""`prune-experts`: each mixture keeps the experts that are worth most, and its router chooses among those."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from moec.dialect import Routing
from moec.errors import MoecError
from moec.experts.cut import MoeBlock, cut, find_block, rename, together
from moec.experts.scores import SCORES, Tally, best, shares, tally
from moec.pipeline.passes import Context, Contract, Pass, Plan, Weights
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.recognition.linear import find_linears
from moec.recognition.router_region import NotARouter
from moec.registry import did_you_mean


@dataclass(frozen=True)
class PruneExperts(Pass):
    """Drop experts, with their rows of the router.

    Tokens that would have gone there go to the best of those that remain. Which are dropped is decided by a score that
    a calibration text gives them, in one run of the unpruned model (`moec.experts.scores`). A text of one domain keeps
    the experts of that domain: calibrate on what the model is for. Routing in groups keeps equal groups.

    Attributes:
        keep: share of the experts that stay, above 0 and at most 1; an expert that is to go only in part stays.
        score: `reap`, `activation`, `frequency`, or `random` (by the pipeline's seed, without a text).
        per_layer: every layer keeps as many; otherwise the lowest of all layers go, which other software's checkpoints
            cannot hold.
    """

    contract: ClassVar[Contract] = "approximate"
    prepared_by: ClassVar[tuple[str, ...]] = ("find-moe",)
    needs_weights: ClassVar[Weights] = "unquantized"  # scores would be those of their errors

    keep: float = 0.75
    score: str = "reap"
    per_layer: bool = True

    def needs_calibration(self) -> bool:
        return self.score != "random"

    def milder(self) -> tuple[Pass, ...]:
        return tuple(replace(self, keep=keep) for keep in (0.75, 0.875) if self.keep < keep)

    def without_data(self) -> Pass:
        """The same experts a layer, drawn by lot; a score that there is not stays, for the pass to refuse it."""
        return replace(self, score="random") if self.score in SCORES else self

    def plan(self, program: Program, context: Context) -> Plan:
        """With `per_layer=False` the scores decide which blocks lose experts at all."""
        found = super().plan(program, context)
        if self.per_layer or not self.needs_calibration() or not found.most:
            return found
        return replace(found, least=1, most=len(moe_nodes(found.program)))

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of blocks that were cut. Raises M203 on settings that are invalid or leave a router too
        few experts, where a router was not recognised, and when the text never reached an expert that would stay."""
        self.check_settings()
        blocks = [_Group(group) for group in together(self._moe_blocks(program, context))]
        self._measure(program, context, blocks)
        before = program.size_bytes
        chosen = [b for b, count in zip(blocks, self._counts(blocks), strict=True) if self._choose(b, count, context)]
        names: dict[str, str] = {}
        for block in chosen:
            try:
                names |= cut(program, block.members, block.remaining, self.name)
            except NotARouter as reason:
                raise self._cannot(block.first, str(reason)) from None
        rename(program, names)
        context.facts.update(
            bytes_before=before, bytes_after=program.size_bytes, blocks=[b.facts(self.score) for b in chosen]
        )
        return sum(len(b.members) for b in chosen)

    # ------------------------------------------------------------------ what is given
    def _refuse(self, what: str, where: str, fix: str) -> MoecError:
        return MoecError("M203", what, where, fix)

    def _cannot(self, block: MoeBlock | str, reason: str) -> MoecError:
        where = block if isinstance(block, str) else block.module
        return self._refuse(
            f"none of its experts can be left out: {reason}", where, "leave prune-experts out for this model"
        )

    def check_settings(self) -> None:
        if isinstance(self.keep, bool) or not isinstance(self.keep, int | float) or not 0 < self.keep <= 1:
            raise self._refuse(
                f"keep={self.keep} is no share of the experts",
                str(self),
                "write for example keep=0.75: above 0 and at most 1",
            )
        if self.score not in SCORES:
            raise self._refuse(
                f"there is no score {self.score!r}", str(self), did_you_mean(str(self.score), list(SCORES))
            )

    def _moe_blocks(self, program: Program, context: Context) -> list[MoeBlock]:
        linears, found = find_linears(program), []
        for node in moe_nodes(program):
            try:
                found.append(find_block(node, linears))
            except NotARouter as reason:
                known = (m.reason for m in context.earlier if m.node == node.name)
                raise self._cannot(module_path(node) or node.name, next(known, str(reason))) from None
        return found

    def _measure(self, program: Program, context: Context, blocks: list[_Group]) -> None:
        """Give every block its scores."""
        if self.score == "random":
            generator = torch.Generator().manual_seed(context.seed)
            for block in blocks:
                block.scores = torch.rand(block.first.experts, generator=generator, dtype=torch.float64)
        elif blocks:
            wanted = {m.node for block in blocks for m in block.members}
            batches = context.require_calibration().batches(program.inputs)
            found = tally(program, batches, [n for n in moe_nodes(program) if n in wanted])
            for block in blocks:
                first, *others = (found[m.node] for m in block.members)
                block.tally = sum(others, first)
                block.scores = block.tally.scores(self.score)

    # ------------------------------------------------------------------ choice
    def _counts(self, blocks: list[_Group]) -> list[int]:
        """How many experts each block keeps."""
        rules = [b.first.rule for b in blocks]
        if self.per_layer:
            return [
                r.groups * _remaining_count(b.first.experts // r.groups, self.keep)
                for b, r in zip(blocks, rules, strict=True)
            ]
        grouped = next((b for b, r in zip(blocks, rules, strict=True) if r.groups > 1), None)
        if grouped is not None:
            raise self._refuse(
                "per_layer=False does not go with experts in groups, which stay equal",
                grouped.first.module,
                "leave per_layer out",
            )
        return shares(
            [b.scores for b in blocks],
            _remaining_count(sum(b.first.experts for b in blocks), self.keep),
            [r.top_k for r in rules],
        )

    def _choose(self, block: _Group, count: int, context: Context) -> bool:
        """Decide which experts stay; False when all do."""
        first, rule, least = block.first, block.first.rule, _least(block.first.rule)
        if count < least:
            what = f"keep={self.keep} leaves {count} of {first.experts} experts, where a token goes to {rule.top_k}"
            what += f" within {rule.top_groups} of {rule.groups} groups" if rule.groups > 1 else ""
            share = math.ceil(1000 * least / first.experts) / 1000
            raise self._refuse(
                what,
                first.module,
                f"keep at least {share:g}" if share < 1 else "leave prune-experts out: it needs them all",
            )
        if count == first.experts:
            context.miss(first.node, f"keep={self.keep} of its {first.experts} experts is all of them")
            return False
        block.remaining = best(block.scores, count, rule.groups)
        blind = [] if block.tally is None else [e for e in block.remaining if block.tally.tokens[e] == 0]
        if blind:
            what = (
                f"the calibration text never reached experts {', '.join(map(str, blind))}, which would stay: "
                "nothing is known of them"
            )
            raise self._refuse(what, first.module, "give a longer text, or more of it with --calibration-tokens")
        return True


@dataclass(eq=False)
class _Group:
    """Blocks that can only be cut alike, mostly one; what is known of their experts, and those that stay."""

    members: list[MoeBlock]
    tally: Tally | None = None
    scores: Tensor = field(default_factory=lambda: torch.empty(0))
    remaining: tuple[int, ...] = ()

    @property
    def first(self) -> MoeBlock:
        return self.members[0]

    def facts(self, score: str) -> dict[str, Any]:
        """What is reported, as plain data; scores in units of the block's mean."""
        dropped = [e for e in range(self.first.experts) if e not in self.remaining]
        found: dict[str, Any] = {
            "module": self.first.module,
            "experts": self.first.experts,
            "kept": list(self.remaining),
            "dropped": dropped,
        }
        if self.tally is not None:
            tokens, scores, remaining = self.tally.tokens, self.scores / self.scores.mean(), list(self.remaining)
            found |= {
                "tokens_least": int(tokens[remaining].min()),
                "choices_dropped": float(tokens[dropped].sum() / tokens.sum()),
            }
            found |= {
                f"{score}_dropped_most": float(scores[dropped].max()),
                f"{score}_kept_least": float(scores[remaining].min()),
            }
        return found


def _remaining_count(count: int, share: float) -> int:
    return count - math.floor(count * (1 - share) + 1e-9)


def _least(rule: Routing) -> int:
    """The fewest experts that a routing rule can choose from."""
    if rule.groups == 1:
        return rule.top_k
    return rule.groups * max(-(-rule.top_k // rule.top_groups), 2 if rule.group_score == "top2" else 1)
