"""Mixtures whose code branches on data (`for e in used.tolist()`), which no tracer follows: the module's own parts, put
together without a branch.

Its routing rule is found by watching it, see `moec.frontend.seen_routing`. A module is only given the other form where
both make the same of new tokens, with its own experts.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.dialect import Routing
from moec.errors import MoecError
from moec.execution.anew import state_of
from moec.frontend.asked_sizes import SizesAsked, sizes_around
from moec.frontend.seen_routing import TOKENS, TOLERANCE, Block, NotAlike, fitted_rule, outside, run
from moec.recognition.trials import uneven


@dataclass(frozen=True)
class Formed:
    """Which mixtures of a model were given a form without branches, by their names, and why others were not."""

    changed: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    def explained(self, error: MoecError) -> MoecError:
        """The refusal of a capture, with the reason why the first of the others was not; itself where all were."""
        for name, reason in self.reasons.items():
            what = f"{error.what}; {name or 'the mixture'} has no form without that branch, for {reason}"
            return MoecError(error.code, what, error.where, error.fix)
        return error


def without_branches(model: nn.Module, call: Callable[[nn.Module], Any]) -> Formed:
    """Give the mixtures of a model a form without branches on data, where they have one.

    Args:
        model: a copy that may be changed; its parts and their names stay.
        call: runs a model on sample inputs.
    """
    found = Formed()
    for name, block in _blocks(model, call):
        try:
            with torch.no_grad():
                block.module.forward = _called_alike(block.module, _flat_form(block))  # type: ignore[method-assign]
            found.changed.append(name)
        except NotAlike as error:
            found.reasons[name] = str(error)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            said = (str(error).splitlines() or [""])[0][:120]
            found.reasons[name] = f"it does not run on drawn tokens and logits: {type(error).__name__}: {said}"
    return found


def _called_alike(module: nn.Module, flat: _Flat) -> Callable[..., Tensor]:
    """A function for it with the name of the module's own argument: by that the model itself is called."""

    @functools.wraps(module.forward)
    def forward(*args: Tensor, **named: Tensor) -> Tensor:
        return flat(*args, *named.values())

    return forward


def _blocks(model: nn.Module, call: Callable[[nn.Module], Any]) -> list[tuple[str, Block]]:
    """Modules that hold alike experts and take one tensor of tokens; none of a model that changes itself while it runs,
    since what it keeps of a run would be that of a trial, or that cannot be run or asked."""
    holders = {n: (m, e) for n, m in model.named_modules() if len(e := _alike(m)) > 1}
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [*args, *kwargs.values()]  # the model itself is called by name
            if len(given) == 1 and isinstance(given[0], Tensor) and given[0].dim() >= 2:
                seen[name] = given[0]

        return note

    try:
        before = state_of(model)
        with contextlib.ExitStack() as watching, torch.no_grad():
            for name, (module, _) in holders.items():
                watching.callback(module.register_forward_pre_hook(hook(name), with_kwargs=True).remove)
            call(model)
        if state_of(model) != before:
            return []
    except Exception:  # a model may do and hold anything: then it is refused as it was
        return []
    floats = {name: x for name, x in seen.items() if x.is_floating_point()}
    return [(name, Block(*holders[name], x.dim(), x.shape[-1])) for name, x in floats.items()]


def _alike(module: nn.Module) -> list[nn.Module]:
    """The experts of a module: children of a list or dictionary that have parameters of the same shapes."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            found = list(child.values() if isinstance(child, nn.ModuleDict) else child)
            shapes = {tuple((n, p.shape) for n, p in m.named_parameters()) for m in found}
            if len(shapes) == 1 and next(iter(shapes)):
                return found
    return []


# ---------------------------------------------------------------------- the other form
_SIZES = ((1, 1), (2, 1), (TOKENS, 1), (300, 1), (1, 2), (7, 3))  # tokens and batches of the trials
_UNEVEN = ((5, 1e3), (6, 0.0), (7, 1e6))  # see `uneven`
_MOST_NUMBERS = 1 << 27  # in what all experts make of a trial


@dataclass(frozen=True)
class _Flat:
    """A mixture without branches: every expert on every token, weighed. `find-moe` makes one operator of it.

    Attributes:
        router: names of the parameters that make the logits, weight and bias. correction: of the bias for the choice.
        shared: the name of a child that all tokens go through, too.
    """

    block: Block
    router: tuple[str, str | None]
    rule: Routing
    correction: str | None
    shared: str | None

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        weight, bias = (None if n is None else _tensor(self.block.module, n) for n in self.router)
        logits = F.linear(rows, weight, bias)  # type: ignore[arg-type]
        correction = None if self.correction is None else _tensor(self.block.module, self.correction).flatten()
        weights, ids = _plainly(logits, correction, self.rule)
        gates = torch.zeros_like(logits).scatter(1, ids, weights.to(logits.dtype))
        outs = torch.stack([expert(rows) for expert in self.block.experts], 1)
        y = (gates[..., None].to(outs.dtype) * outs).sum(1)
        if self.shared is not None:
            y = y + self.block.module.get_submodule(self.shared)(rows)
        return y.to(x.dtype).reshape(x.shape)


def _plainly(logits: Tensor, bias: Tensor | None, rule: Routing) -> tuple[Tensor, Tensor]:
    """A rule without groups as models write it: weights and ids `[T, K]`."""
    scores = _SCORES[rule.score](logits)
    ids = (scores if bias is None else scores + bias).topk(rule.top_k, -1).indices
    weights = scores.gather(-1, ids)
    if rule.combine == "renormalize":
        weights = weights / (weights.sum(-1, keepdim=True) + rule.epsilon)
    elif rule.combine == "softmax":
        weights = logits.gather(-1, ids).softmax(-1)
    elif rule.combine == "ones":
        weights = torch.ones_like(weights)
    return weights * rule.scale, ids


_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "sigmoid": torch.sigmoid,
    "sqrt_softplus": lambda x: F.softplus(x).sqrt(),
    "identity": lambda x: x,
}


def _tensor(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its name, looked up when it is read: a tracer puts others in their places."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value  # type: ignore[no-any-return]


def _flat_form(block: Block) -> _Flat:
    """The other form of a module. Raises NotAlike where none makes the same of new tokens."""
    generator = torch.Generator().manual_seed(1)
    if any(m._forward_hooks or m._forward_pre_hooks for m in block.module.modules()):
        raise NotAlike("hooks hang on it")
    rule, correction = fitted_rule(block)
    router = _router(block, block.tokens(lambda *s: torch.randn(s, generator=generator)))
    for shared in (None, *(n for n, _ in block.module.named_children())):
        flat = _Flat(block, router, rule, correction, shared)
        with contextlib.suppress(RuntimeError, TypeError, AttributeError, NotImplementedError):
            if _makes_the_same(flat, generator):
                return flat
    raise NotAlike("its parts, put together, do not make what it makes")


def _makes_the_same(flat: _Flat, generator: torch.Generator) -> bool:
    """Whether a form makes what the module makes, on both sides of each size that the module asks for, too. Raises
    NotAlike where such a size is too large to be tried."""
    block, tried, met = flat.block, set[tuple[int, int]](), set[float]()
    todo = list(_SIZES)
    while todo:
        size = todo.pop(0)
        if size in tried:
            continue
        tried.add(size)
        x = uneven(block.tokens(lambda *s: torch.randn(s, generator=generator), *size), _UNEVEN)
        with SizesAsked() as asked:
            wanted = block.module(x)
        crowd = x[..., :1, :].expand_as(x).contiguous()  # all tokens at the experts of one
        if not _same(flat(x), wanted) or not _same(flat(crowd), block.module(crowd)):
            return False
        todo += [more for n, factor in asked.found.items() if size in _SIZES or n not in met
                 for more in _affordable(block, sizes_around(*size, factor))]  # fmt: skip
        met |= asked.found.keys()
    return True


def _affordable(block: Block, sizes: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those of which every expert's output fits. Raises NotAlike where none does."""
    most = _MOST_NUMBERS // (block.hidden * len(block.experts))
    found = sorted((n, b) for n, b in sizes if n * b <= most and (b == 1 or block.dims > 2))
    if not found:
        raise NotAlike("it branches on a number of tokens that is too large to be tried")
    return found


def _same(found: Tensor, wanted: Any) -> bool:
    return (
        isinstance(wanted, Tensor)
        and found.shape == wanted.shape
        and bool(((found - wanted).norm(dim=-1) <= TOLERANCE * wanted.norm(dim=-1)).all())
    )


def _router(block: Block, x: Tensor) -> tuple[str, str | None]:
    """The parameters that make the logits. Raises NotAlike where it is no linear layer."""
    _, found, _ = run(block, x, None)
    count = len(block.experts)
    own = {n: p for n, p in outside(block) if p.shape in ((count, block.hidden), (count,))}
    for weight in (n for n, p in own.items() if p.dim() == 2):
        for bias in (None, *(n for n, p in own.items() if p.dim() == 1)):
            logits = F.linear(x.reshape(-1, block.hidden), own[weight], None if bias is None else own[bias])
            if len(found) == 1 and _same(logits, found[0].reshape(logits.shape)):
                return weight, bias
    raise NotAlike("its logits are no linear layer of its tokens")
