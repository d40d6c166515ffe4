"""By what rule a module that holds experts weighs them, seen by watching it in eager PyTorch.

The router's logits are replaced by drawn ones, and the experts by functions that say which they are; so the weight of
every expert for every token is seen, and a routing rule is fitted to it by value.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from moec.dialect import Routing, route_reference
from moec.dialect.routing import COMBINES, SCORES
from moec.recognition.routing_rule import by_expert
from moec.recognition.trials import tie_breaks

TOKENS = 63  # of a probe
# tokens on the same experts, see `_crowd`: a capacity below shows, wherever the module keeps it; of narrow ones, more
_CROWD, _MOST, _NUMBERS = 10_001, 131_073, 1 << 26
TOLERANCE = 1e-5  # of float32 modules; rules that differ do so by 1e-3 and more on some probe
_SPREADS = ((1.0, 0.0), (4.0, 0.0), (1.0, -25.0), (1.0, -46.0))  # of logits, and their shift: tiny scores tell epsilons
_EPSILONS = (0.0, 1e-20, 1e-12, 1e-9, 1e-8, 1e-6, 1e-5)
_PRODUCTS = (F.linear, torch.matmul, torch.mm, torch.addmm, Tensor.matmul, Tensor.__matmul__)


class NotAlike(Exception):  # not an error: the module stays as it is
    """Why a module is not given another form."""


@dataclass
class Block:
    """A module with experts, on a copy that may be changed.

    Attributes:
        module, experts: the mixture, and its experts in order. dims: of its tokens. hidden: H.
    """

    module: nn.Module
    experts: list[nn.Module]
    dims: int
    hidden: int

    def tokens(self, draw: Callable[..., Tensor], count: int = TOKENS, batch: int = 1) -> Tensor:
        """So many drawn tokens in each of a batch, in the form that the module takes."""
        return draw(*([batch] * (self.dims - 2)), count, self.hidden)


# ---------------------------------------------------------------------- watching
class _Logits(TorchFunctionMode):
    """Puts other logits in the place of those that a router computes: of a product with E columns."""

    def __init__(self, experts: int, logits: Tensor | None) -> None:
        super().__init__()
        self.experts, self.logits = experts, logits
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _PRODUCTS and result.shape[-1] == self.experts:
            self.found.append(result)
            return result if self.logits is None else self.logits.reshape(result.shape).to(result.dtype)
        return result


@dataclass(frozen=True)
class _Seen:
    """Logits `[T, E]`, the weights `[T, E]` that a module made of them, and how coarsely they were seen: beside what
    else it adds to its experts, tiny ones are lost."""

    logits: Tensor
    weights: Tensor
    coarse: float

    def fits(self, rule: Routing, bias: Tensor | None) -> bool:
        """Whether a rule gives every expert the weight that was seen."""
        fits = torch.zeros(len(self.logits), dtype=torch.bool)
        for logits in tie_breaks(self.logits.double()):
            found = by_expert(*route_reference(logits, bias, rule), logits.shape[-1])
            error = (found - self.weights).norm(dim=-1)
            fits |= error <= TOLERANCE * self.weights.double().norm(dim=-1) + self.coarse
        return bool(fits.all())


@contextlib.contextmanager
def _experts_say(block: Block, say: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Within, an expert's output is what `say` makes of its number and its rows."""
    own = [e.__dict__.get("forward") for e in block.experts]
    for k, expert in enumerate(block.experts):
        expert.forward = lambda rows, k=k: say(k, rows)  # type: ignore[method-assign, misc]
    try:
        yield
    finally:
        for expert, forward in zip(block.experts, own, strict=True):
            del expert.forward
            if forward is not None:
                expert.forward = forward  # type: ignore[method-assign]


def run(block: Block, x: Tensor, logits: Tensor | None) -> tuple[Tensor, list[Tensor], Any]:
    """What a module makes of tokens `[T, H]`, the logits that it computed, and the whole of what it returns."""
    with torch.no_grad(), _Logits(len(block.experts), logits) as mode:
        result = block.module(x)
    first = result[0] if isinstance(result, tuple) else result
    if not isinstance(first, Tensor) or first.shape != x.shape:
        raise NotAlike("it returns something else than its tokens")
    return first.reshape(-1, block.hidden), mode.found, result


def _seen(block: Block, x: Tensor, logits: Tensor) -> _Seen:
    """The weight of each expert for each token, where logits `[T, E]` take the place of the router's."""
    count, width = len(block.experts), block.hidden
    with _experts_say(block, lambda _, rows: torch.zeros_like(rows)):
        rest, found, _ = run(block, x, logits)
    if len(found) != 1:
        raise NotAlike("its logits are not one product")
    parts = []
    for start in range(0, count, width):

        def say(expert: int, rows: Tensor, start: int = start) -> Tensor:
            out = torch.zeros_like(rows)
            if start <= expert < start + width:
                out[..., expert - start] = 1.0
            return out

        with _experts_say(block, say):
            parts.append((run(block, x, logits)[0] - rest)[:, : min(width, count - start)])
    return _Seen(logits, torch.cat(parts, -1), 1e-6 * float(rest.abs().max()))


# ---------------------------------------------------------------------- fitting
def fitted_rule(block: Block) -> tuple[Routing, str | None]:
    """The rule by which a module weighs its experts, and the name of the correction bias in it. Raises NotAlike."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    count = len(block.experts)
    drawn = [draw(TOKENS, count) * spread + shift for spread, shift in _SPREADS]
    drawn.append(draw(TOKENS, count).round())
    seen = [_seen(block, block.tokens(draw, len(x)), x) for x in drawn]
    chosen = (seen[0].weights != 0).sum(-1)
    top_k = int(chosen[0])
    if not top_k or (chosen != top_k).any():
        raise NotAlike("tokens go to different numbers of experts")
    crowd = _crowd(draw, min(_MOST, max(_CROWD, _NUMBERS // block.hidden)), count, top_k)
    seen.append(_seen(block, block.tokens(draw, len(crowd)), crowd))
    biases = {n: t.double().flatten() for n, t in outside(block) if t.numel() == count}
    for name in (None, *biases):
        bias = None if name is None else biases[name]
        for rule in _rules(top_k, seen[0], bias):
            if all(each.fits(rule, bias) for each in seen):
                return rule, name
    raise NotAlike("no routing rule weighs experts as it does")


def _crowd(draw: Callable[..., Tensor], tokens: int, experts: int, top_k: int) -> Tensor:
    """Logits `[T, E]` of tokens that all choose the same experts, but for the last, which is alone where it goes: what
    a module makes of an expert with few of the tokens shows, too."""
    logits = draw(tokens, experts) * 0.1
    busy = min(top_k, experts - 1)
    logits[:, :busy] += 4.0
    logits[-1, :busy] -= 8.0
    return logits


def _rules(top_k: int, seen: _Seen, bias: Tensor | None) -> Iterator[Routing]:
    """Rules without groups, each with the scale that fits the first token."""
    for score in SCORES:
        for combine in COMBINES:
            for epsilon in _EPSILONS if combine == "renormalize" else (0.0,):
                rule = Routing(top_k, score, combine, epsilon=epsilon)
                weights, _ = route_reference(seen.logits[:1].double(), bias, rule)
                scale = float(seen.weights[0].double().sum() / weights.sum())
                if math.isfinite(scale) and scale:
                    yield replace(rule, scale=_round(scale))


def _round(value: float) -> float:
    """A number as somebody would have written it, where it is that close."""
    near = round(value, 3)
    return near if abs(near - value) <= 1e-5 * abs(value) else value


def outside(block: Block) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a block that are none of an expert's."""
    inside = {id(t) for expert in block.experts for t in (*expert.parameters(), *expert.buffers())}
    for name, tensor in (*block.module.named_parameters(), *block.module.named_buffers()):
        if id(tensor) not in inside and tensor.is_floating_point():
            yield name, tensor.detach()
