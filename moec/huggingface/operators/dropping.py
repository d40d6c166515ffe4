"""Mixtures whose experts have a capacity: Switch Transformers' and NLLB-MoE's blocks, with a router that drops tokens
and experts in a dictionary.

A block is taken for one by its parts, and its rule is found by value: on a copy of the block that is made small, and
whose capacity is too, each known rule is tried on drawn tokens and padding.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.huggingface.operators.experts import WAY_OUT, refuse
from moec.huggingface.operators.gate import identify
from moec.huggingface.operators.proven import apart, require_same
from moec.program.program import META
from moec.weights import lazy
from moec.weights.lazy import Weight

_HIDDEN, _INNER, _BATCH, _LENGTH = 16, 12, 3, 11  # of the small copy
_CAPACITY, _SHARE = 3, 0.12  # tokens an expert there, and as a share of all: some are dropped
_MATRICES = (("w_in", 0, "weight"), ("w_out", 1, "weight"), ("b_in", 0, "bias"), ("b_out", 1, "bias"))


def is_dropping(module: nn.Module) -> bool:
    """Whether a module has the parts of such a block: a router with a capacity, and alike experts of two layers in a
    dictionary."""
    parts = dict(module.named_children())
    router, experts = parts.get("router"), parts.get("experts")
    if not isinstance(experts, nn.ModuleDict) or not isinstance(getattr(router, "classifier", None), nn.Linear):
        return False
    layers = _layers(experts).values()
    shapes = {tuple((type(m), n, p.shape) for m in own for n, p in m.named_parameters()) for own in layers}
    kinds = [type(m) for own in layers for m in own]
    return hasattr(router, "expert_capacity") and len(shapes) == 1 and kinds == [nn.Linear] * 2 * len(layers)


def _layers(experts: nn.ModuleDict) -> dict[str, list[nn.Module]]:
    """The parts of each expert that have parameters; what else is in the dictionary is none."""
    return {k: [m for m in e.children() if list(m.parameters())] for k, e in experts.items() if list(e.parameters())}


def adapt_dropping(path: str, module: Any, weights: dict[str, Weight]) -> None:
    """Rewrite such a block of a captured copy to `moec::route` with a capacity and `moec::experts`, in place.

    Raises:
        MoecError: M206 when it draws at random, puts tokens in line by their scores, rounds its scores, has a
            capacity that hangs on earlier calls, or computes something else than the rules known here.
    """
    if reason := _why_not(module):
        raise refuse(path, module, reason)
    rule, difference = _rule_of(module)
    require_same(difference, path, module, fix=WAY_OUT)
    _rewrite(path, module, weights, rule)


def reads_two_experts_only(module: nn.Module) -> bool:
    """Whether it is such a block whose code sends every token to the same two experts, whatever its router says."""
    return is_dropping(module) and not _why_not(module) and _rule_of(module)[0] is _two_choices_as_numbers


def _rule_of(module: Any) -> tuple[_Rule, float]:
    """The rule that comes nearest, and how near."""
    small = _small(module)
    possible = [rule for rule, needs in _RULES.items() if all(hasattr(small.router, name) for name in needs)]
    found = {rule: _difference(small, rule) for rule in possible}
    best = min(found, key=lambda rule: found[rule])
    return best, found[best]


def _why_not(module: Any) -> str:
    router = module.router
    if getattr(router, "second_expert_policy", "all") != "all":
        return f"draws its second expert at random ({router.second_expert_policy})"
    if getattr(router, "batch_prioritized_routing", False):
        return "puts the tokens of a batch in line by their scores, which moec::route cannot express"
    if (dtype := getattr(router, "dtype", torch.float32)) != torch.float32:
        return f"rounds its router's scores to {str(dtype).removeprefix('torch.')}, which moec::route does not"
    if router.expert_capacity is None and not getattr(router, "moe_eval_capacity_token_fraction", 0.0) > 0:
        return "has the capacity that its first call had"
    return ""


# ---------------------------------------------------------------------- rules
def _first_choice(self: Any, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
    """Switch: one expert a token; each text of a batch is in line for itself."""
    weights, ids = torch.ops.moec.route(_logits(self, x), None, self.router.expert_capacity, top_k=1, combine="scores")
    return _mixed(self, x, ids, weights)


def _two_choices(self: Any, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
    """NLLB-MoE: two experts a token; the whole batch is in one line, without its padding."""
    rows = x.reshape(-1, x.shape[-1])
    weights, ids = _two_routed(self, rows, padding_mask)
    return _mixed(self, rows, ids, weights).view(x.shape)


def _two_choices_as_numbers(self: Any, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
    """NLLB-MoE as transformers 5 computes it: the mask of first choices, which holds 0 and 1, is read as the number of
    an expert. So first choices go to expert 1, second ones to expert 0."""
    rows = x.reshape(-1, x.shape[-1])
    weights, ids = _two_routed(self, rows, padding_mask)
    called = 1 - torch.arange(2, device=ids.device)
    return _mixed(self, rows, called.expand(ids.shape), weights).view(x.shape)


_Rule = Callable[..., Tensor]
_OF_TWO = ("moe_eval_capacity_token_fraction", "router_ignore_padding_tokens", "normalize_router_prob_before_dropping")
_RULES: dict[_Rule, tuple[str, ...]] = {  # and what each asks the router for
    _first_choice: (),
    _two_choices: _OF_TWO,
    _two_choices_as_numbers: _OF_TWO,
}


def _two_routed(self: Any, rows: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    router = self.router
    share, count = router.moe_eval_capacity_token_fraction, rows.shape[0]
    capacity = math.ceil(share * count) if share > 0 else router.expert_capacity
    counted = None
    if padding_mask is not None and not router.router_ignore_padding_tokens:
        last = padding_mask[:, :, -1, :] if padding_mask.dim() == 4 else padding_mask
        last = last.reshape(-1)[-count:]
        # what is added to scores is 0 where a token may be seen; moec's own masks say true there
        counted = ~last.bool() if last.is_floating_point() else last
    weights, ids = torch.ops.moec.route(
        _logits(self, rows), None, capacity, counted, top_k=2, floor=torch.finfo(rows.dtype).eps,
        scale=1 - self.experts.token_dropout, drop_first=not router.normalize_router_prob_before_dropping,
    )  # fmt: skip
    return weights, ids


def _logits(self: Any, x: Tensor) -> Tensor:
    layer = self.router.classifier
    return F.linear(x.float(), layer.weight.float(), None if layer.bias is None else layer.bias.float())


def _mixed(self: Any, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    e, rule = self.experts, self.experts._moec_activation.arguments()
    result: Tensor = torch.ops.moec.experts(x, ids, weights.to(x.dtype), e.w_in, e.w_out, e.b_in, e.b_out, **rule)
    return result


# ---------------------------------------------------------------------- rewriting
def _rewrite(path: str, module: Any, weights: dict[str, Weight], rule: _Rule) -> None:
    """Stack the experts' matrices, `[E, I, H]`, `[E, H, I]` and biases, and call them by the rule."""
    old = module.experts
    layers, new = _layers(old), nn.Module()
    names = {part: name for name, part in old.named_modules()}
    for name, place, kind in _MATRICES:
        if getattr(next(iter(layers.values()))[place], kind) is None:
            new.register_parameter(name, None)
            continue
        used = list(layers.values())[: 2 if rule is _two_choices_as_numbers else None]
        stacked = lazy.stack([weights.pop(f"{path}.experts.{names[own[place]]}.{kind}") for own in used])
        weights[f"{path}.experts.{name}"] = replace(stacked, relaid=True)
        empty = torch.empty(stacked.shape, dtype=stacked.dtype, device=META)
        setattr(new, name, nn.Parameter(empty, requires_grad=False))
    new.token_dropout = getattr(old, "moe_token_dropout", 0.0)  # type: ignore[arg-type]
    new._moec_activation = _activation(path, module)
    module.experts = new
    module.forward = MethodType(rule, module)


def _activation(path: str, module: Any) -> Any:
    expert = module.experts[next(iter(_layers(module.experts)))]
    functions = [m for m in expert.children() if not list(m.parameters()) and not isinstance(m, nn.Dropout)]
    found = identify(functions[0], False, (module,)) if len(functions) == 1 else None
    if found is None:
        raise refuse(path, module, "has an activation that is none of those that moec knows")
    return found.activation


# ---------------------------------------------------------------------- proof
def _small(module: Any) -> Any:
    """The same block with few numbers, which are drawn, and so little room that tokens are dropped."""
    small, generator = deepcopy(module).float(), torch.Generator().manual_seed(0)
    shapes = {small.router.classifier: (small.router.classifier.out_features, _HIDDEN)}
    for first, last in _layers(small.experts).values():
        shapes |= {first: (_INNER, _HIDDEN), last: (_HIDDEN, _INNER)}
    for part, shape in shapes.items():
        for name, _ in list(part.named_parameters()):
            size = shape if name == "weight" else shape[:1]
            setattr(part, name, nn.Parameter(torch.randn(size, generator=generator) * 0.4, requires_grad=False))
    small.router.expert_capacity = _CAPACITY
    if getattr(small.router, "moe_eval_capacity_token_fraction", 0.0) > 0:
        small.router.moe_eval_capacity_token_fraction = _SHARE
    return small.eval()


def _difference(small: Any, rule: _Rule) -> float:
    """The largest difference on drawn tokens, with padding and without, over the spread."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(_BATCH, _LENGTH, _HIDDEN, generator=generator)
    padding = torch.zeros(_BATCH, 1, _LENGTH, _LENGTH)
    padding[0, :, :, -4:] = padding[1, :, :, :2] = torch.finfo(torch.float32).min
    takes = len(inspect.signature(small.forward).parameters) > 1
    worst = 0.0
    for given in ((x,), (x, padding)) if takes else ((x,),):
        with torch.no_grad():
            wanted, found = deepcopy(small)(*given), _rewritten(small, rule)(*given)
        worst = max(worst, apart(found, wanted))
    return worst


def _rewritten(small: Any, rule: _Rule) -> Any:
    adapted = deepcopy(small)
    table = {f"small.{name}": lazy.from_tensor(value, name) for name, value in small.named_parameters()}
    _rewrite("small", adapted, table, rule)
    for name in ("w_in", "w_out", "b_in", "b_out"):
        if (weight := table.get(f"small.experts.{name}")) is not None:
            setattr(adapted.experts, name, nn.Parameter(weight.load(), requires_grad=False))
    return adapted
