"""Whether a mixture in plain operators computes what `moec::route` and `moec::experts` compute: it is run, on drawn
weights, tokens and logits.

Weights are drawn, because a model's own may hide a difference: experts that are copies of one give the same whatever
the choice. Tokens whose logits tie, tokens that all choose the same experts, and more tokens than any number in the
graph are among the trials: a capacity over which tokens pass by shows there. By what a rule is told from its
neighbours, see `moec.recognition.routing_rule`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, fx

from moec.dialect import Routing, route_reference
from moec.dialect.routing import scores_of
from moec.execution.memory import total_bytes
from moec.program.program import Program
from moec.recognition.hand_written_experts import Experts
from moec.recognition.hand_written_region import MixtureRegion, NotAMixture
from moec.recognition.interpret import Sizes, run, sizes
from moec.recognition.linear import value_of
from moec.recognition.routing_rule import PROBES, candidates
from moec.recognition.trials import tie_breaks, tie_breaks_of_scores, uneven
from moec.weights.lazy import Weight

aten = torch.ops.aten
_TOLERANCE = 1e-6  # of a token's norm, in float64; rules that differ do so by 1e-3 and more on some trial
_UNEVEN = ((5, 1e3), (7, 1e6), (6, 0.0), (11, 1e-3))  # see `uneven`
_FEW = 8  # numbers: a weight of no more may be a constant of the rule, and keeps its values
_MOST_TOKENS = 1 << 14  # of a trial
_MOST_NUMBERS, _BYTES_A_NUMBER = 1 << 28, 64  # of a stack that is drawn whole: 2 GiB in float64, of memory for all
_SATURATED = (4.0, 60.0, 0.3, 0.0)  # see `PROBES`: here every sigmoid is 1, and a choice by it another than by logits
_TIES = "where logits tie it takes more experts than a top-k does"
_CROWD = "tokens over an expert's capacity pass it by"
_TABLES = (
    aten.zeros.default,
    aten.full.default,
    aten.empty.memory_format,
    aten.new_zeros.default,
    aten.new_full.default,
)
_BOUNDS = (
    aten.lt.Scalar, aten.le.Scalar, aten.gt.Scalar, aten.ge.Scalar, aten.clamp.default, aten.clamp_max.default,
)  # fmt: skip
_SHAPES = (aten.view.default, aten.reshape.default, aten.expand.default, aten.one_hot.default, aten.unflatten.int)


def with_drawn_weights(program: Program) -> Program:
    """The same graph over drawn weights, each made anew where it is read. It shares its nodes with the program."""
    first: dict[int, Weight] = {}  # one weight under two names stays one
    values = lru_cache(maxsize=4)(_values)  # a stack is read expert by expert
    drawn = {name: first.setdefault(id(w), _drawn(name, w, values)) for name, w in program.weights.items()}
    return replace(program, weights=drawn)


def is_drawn(weight: Weight) -> bool:
    """Whether a weight has drawn values there: not whole numbers, and not the few that may be constants of a rule."""
    return weight.dtype.is_floating_point and math.prod(weight.shape) > _FEW


def _drawn(name: str, weight: Weight, values: Callable[..., Tensor]) -> Weight:
    if not is_drawn(weight):
        return weight
    return Weight(weight.shape, weight.dtype, name, lambda a, b: values(name, weight.shape, weight.dtype)[a:b])


def _values(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if math.prod(shape) > min(_MOST_NUMBERS, total_bytes() // _BYTES_A_NUMBER):
        raise NotAMixture(f"{name} is too large to be tried: {math.prod(shape):,} numbers in one tensor")
    generator = torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    spread = 1 / math.sqrt(min(shape[-2:])) if len(shape) > 1 else 0.3
    return (torch.randn(shape, generator=generator) * spread).to(dtype)


@dataclass(frozen=True)
class _Trial:
    """Tokens `[T, H]`, logits `[T, E]`, a bias `[E]`, what the mixture made of them `[T, H]`, and each expert's own.

    What a rule gets wrong that got all earlier trials right has a reason of its own.
    """

    x: Tensor
    logits: Tensor
    bias: Tensor | None
    wanted: Tensor
    expert: Callable[[int], Tensor]
    reason: str
    kept: Callable[[Tensor], Tensor] | None = None

    def agrees(self, rule: Routing, experts: Experts, score_before: bool, drop_first: bool) -> bool:
        """Whether the rule and the experts make the same of every token, whichever of experts that tie it takes."""
        same = torch.zeros(len(self.x), dtype=torch.bool)
        by_score = self.bias is None and rule.combine != "softmax"
        added = tie_breaks_of_scores(scores_of(self.logits, rule.score)) if by_score else [None]
        for logits, bias in itertools.product(tie_breaks(self.logits), added):
            try:
                weights, ids = self._routed(logits, self.bias if bias is None else bias, rule, drop_first)
            except RuntimeError:  # a candidate that does not fit the shapes
                return False
            found = self._mixed(weights, ids, experts, score_before)
            same |= (found - self.wanted).norm(dim=-1) <= _TOLERANCE * self.wanted.norm(dim=-1)
            if same.all():
                return True
        return False

    def _routed(self, logits: Tensor, bias: Tensor | None, rule: Routing, drop_first: bool) -> tuple[Tensor, Tensor]:
        if self.kept is None:
            return route_reference(logits, bias, rule)
        weights, ids = route_reference(logits, bias, replace(rule, combine="scores") if drop_first else rule)
        weights = weights.masked_fill(~self.kept(ids), 0.0)
        if drop_first:
            total = weights.sum(-1, keepdim=True) / rule.scale + rule.epsilon
            weights = weights / (total.clamp(min=rule.floor) if rule.floor else total)
        return weights.nan_to_num(), ids

    def _mixed(self, weights: Tensor, ids: Tensor, experts: Experts, score_before: bool) -> Tensor:
        found = torch.zeros_like(self.wanted)
        for e in sorted(set(ids.flatten().tolist())):
            share = (weights * (ids == e)).sum(-1, keepdim=True)
            if score_before:
                found += experts.run(e, self.x * share) * (ids == e).any(-1, keepdim=True)
            else:
                found += self.expert(e) * share
        return found


@dataclass(frozen=True)
class Rule:
    """How a mixture weighs its experts.

    Attributes:
        routing: the rule. score_before: whether weights multiply what goes into the experts, not what comes out.
        drop_first: see `moec.dialect.capacity.Capacity`.
    """

    routing: Routing
    score_before: bool
    drop_first: bool = False


def identify(program: Program, region: MixtureRegion, experts: Experts) -> Rule:
    """The rule of a region.

    Args:
        program: over drawn weights. experts: read from it.

    Raises:
        NotAMixture: with the reason, where no rule makes the same of every token.
    """
    found = list(_trials(program, region, experts))
    nearly = ""
    for before, rule in itertools.product((False, True), candidates(region)):
        for drop_first in (False, True) if region.kept and rule.combine == "renormalize" else (False,):
            wrong = next((trial for trial in found if not trial.agrees(rule, experts, before, drop_first)), None)
            if wrong is None:
                return Rule(rule, before, drop_first)
            nearly = nearly or wrong.reason
    raise NotAMixture(nearly or "no routing rule over its experts computes what it computes")


def _trials(program: Program, region: MixtureRegion, experts: Experts) -> Iterator[_Trial]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    size = sizes()
    shape = [size(s) for s in value_of(region.logits.node).shape]
    for spread, shift, bias_spread, bias_shift in (*PROBES, _SATURATED):
        bias = draw(region.experts) * bias_spread + bias_shift
        yield _trial(program, region, experts, size, draw(*shape) * spread + shift, bias, draw)
    yield _trial(program, region, experts, size, draw(*shape).round(), draw(region.experts), draw, _TIES)
    size = sizes(_least_size(program, region))
    crowded = draw(*(size(s) for s in value_of(region.logits.node).shape))
    crowded[..., : region.top_k] += 20.0
    yield _trial(program, region, experts, size, crowded, draw(region.experts) * 0.1, draw, _CROWD)


def _trial(
    program: Program, region: MixtureRegion, experts: Experts, size: Sizes, logits: Tensor, bias: Tensor,
    draw: Callable[..., Tensor], reason: str = "",
) -> _Trial:  # fmt: skip
    start = uneven(draw(*(size(s) for s in value_of(region.start).shape)), _UNEVEN)
    given: dict[fx.Node, Tensor] = {region.start: start, region.logits.node: logits}
    if region.bias is not None:
        given[region.bias] = bias.reshape(value_of(region.bias).shape)
    kept = _kept(region, given, size, int(logits.numel()))
    try:
        wanted = run(program, region.nodes, given, size)[region.output]
    except NotAMixture:
        raise
    except Exception as error:  # an operator that cannot run in float64, or reads what is not given
        what = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        raise NotAMixture(f"it cannot be run on drawn tokens: {what}") from error
    hidden = wanted.shape[-1]
    x = start.reshape(-1, hidden)
    if len(x) != logits.numel() // region.experts or wanted.numel() != x.numel():
        raise NotAMixture("its router sees something else than one token at a time")
    own = lru_cache(maxsize=None)(lambda e: experts.run(e, x))
    flat = logits.reshape(-1, region.experts)
    return _Trial(x, flat, None if region.bias is None else bias, wanted.reshape(-1, hidden), own, reason, kept)


def _kept(
    region: MixtureRegion, given: dict[fx.Node, Tensor], size: Sizes, seed: int
) -> Callable[[Tensor], Tensor] | None:
    """Which choices a drawn value of the region's capacity keeps, by their ids; the value is among what is given."""
    if (found := region.kept) is None:
        return None
    value = given[found.node] = found.drawn(torch.Generator().manual_seed(seed), size)
    return lambda ids: found.of(value, ids, region.experts)


def _least_size(program: Program, region: MixtureRegion) -> int:
    """So many of each dynamic dimension that there are more tokens than any number in the graph. Raises NotAMixture
    where that would be too many."""
    tokens = value_of(region.logits.node).shape[:-1]
    dims = {symbol for s in tokens if not isinstance(s, int) for symbol in s.node.expr.free_symbols}
    hidden = int(value_of(region.x).shape[-1])
    found = [n for node in region.rule_nodes for n in _numbers(program, node, hidden) if n < 1 << 31]
    number = max([0, *found])
    if dims and number + 1 > _MOST_TOKENS:
        raise NotAMixture(f"a number of {number:,} takes part, more than the tokens of a trial")
    return 7 + math.ceil((number + 1) ** (1 / max(1, len(dims))))


def _numbers(program: Program, node: fx.Node, hidden: int) -> list[int]:
    """Numbers that may count tokens: of operators but those that only change a form, of computed sizes, and of
    constants that are no weights, with how many they are: a token may look up its place in them. A table of zeros as
    wide as a token counts by its other sizes."""
    value = node.meta.get("val")
    if isinstance(value, torch.SymInt):
        return [abs(int(n)) for n in value.node.expr.atoms() if n.is_Integer]
    if node.op == "get_attr":
        weight = program.weights[str(node.target)]
        values = [] if is_drawn(weight) else weight.load().double().abs().flatten().ceil().tolist()
        return [] if is_drawn(weight) else [*weight.shape, *map(int, values)]
    given = [] if node.target in _SHAPES else torch.utils._pytree.tree_leaves((node.args, node.kwargs))
    if isinstance(value, Tensor) and node.target in _TABLES and value.shape[-1:] == (hidden,):
        given.remove(hidden)
    whole = [abs(n) for n in given if isinstance(n, int) and not isinstance(n, bool)]
    return whole + [math.ceil(abs(n)) for n in given if isinstance(n, float) and node.target in _BOUNDS]
