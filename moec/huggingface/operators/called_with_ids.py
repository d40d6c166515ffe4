"""Experts outside transformers' interface that are called as the interface calls them: with tokens, the experts that
were chosen, and their weights.

Four layouts are known: that of the interface itself, in a class that stands outside of it (Step-3); DBRX's, whose
matrices lie one below the other; that of nomic-embed-text-v2-moe, DBRX's without a gate and with one bias behind all;
and LongCat's, where some experts give a token back as it came ("zero experts"). A module is taken for one by its
parameters, and proven on a copy of itself that is made small.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from moec.dialect import Activation
from moec.huggingface.operators.experts import WAY_OUT, canonical_layout, check_shapes, place, refuse, unknown_gate
from moec.huggingface.operators.gate import gate_of, identify
from moec.huggingface.operators.proven import apart, require_same
from moec.program.program import META
from moec.weights import lazy
from moec.weights.lazy import Weight

_HIDDEN, _INTERMEDIATE = 16, 12  # of the small copy: no multiple of each other, nor of a number of experts
_SIZES = {
    **dict.fromkeys(("hidden_size", "hidden_dim"), _HIDDEN),
    **dict.fromkeys(("ffn_hidden_size", "intermediate_size", "intermediate_dim"), _INTERMEDIATE),
}
_CALL = ["hidden_states", "top_k_index", "top_k_weights"]
_CALL_WITH_SCORES = ["x", "weights", "top_weights", "top_experts"]


def adapt_called_with_ids(path: str, module: Any, weights: dict[str, Weight]) -> bool:
    """Rewrite such a module of a captured copy to `moec::experts`, in place; whether it is one.

    Raises:
        MoecError: M206 when it has the parts of a known one and does not compute what that does.
    """
    layout = _layout_of(module)
    if layout is None:
        return False
    kept = _small(module, layout)
    difference = _difference(kept, _adapted(kept, layout), layout)
    require_same(difference, path, module, fix=WAY_OUT)
    layout(path, module, weights)
    return True


Layout = Callable[[str, Any, dict[str, Weight]], None]


def _layout_of(module: Any) -> Layout | None:
    call = list(inspect.signature(module.forward).parameters)
    own, parts = dict(module.named_parameters()), dict(module.named_children())
    if (
        call == _CALL_WITH_SCORES
        and set(own) == {"mlp.w1", "mlp.w2", "bias"}
        and hasattr(parts["mlp"], "activation_fn")
    ):
        return _without_gate
    if call != _CALL:
        return None
    if set(own) == {"mlp.w1", "mlp.v1", "mlp.w2"} and hasattr(parts["mlp"], "activation_fn"):
        return _in_one_matrix
    if set(own) == {"gate_up_proj", "down_proj"}:
        return _with_zero_experts if hasattr(module, "num_routed_experts") else _as_the_interface
    return None


# ---------------------------------------------------------------------- layouts
def _as_the_interface(path: str, module: Any, weights: dict[str, Weight]) -> None:
    """Step-3: `gate_up_proj` `[E, 2*I, H]` and `down_proj` `[E, H, I]`, with a gate of its own that may clamp."""
    gate = identify(getattr(module, "_apply_gate", None) or gate_of(module.act_fn), True, (module,))
    if gate is None:
        raise unknown_gate(path, module)
    place(path, module, "gate_up_proj", weights, partial(canonical_layout, gate=gate))
    check_shapes(path, module, "gate_up_proj", gate)
    module._moec_activation = gate.activation
    module.forward = MethodType(_as_the_interface_forward, module)


def _as_the_interface_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    rule = self._moec_activation.arguments()
    result: Tensor = torch.ops.moec.experts(
        hidden_states, top_k_index, top_k_weights, self.gate_up_proj, self.down_proj, **rule
    )
    return result


def _in_one_matrix(path: str, module: Any, weights: dict[str, Weight]) -> None:
    """DBRX: `w1`, `v1` and `w2` are `[E*I, H]`, gate, up and down."""
    mlp, count = module.mlp, module.num_experts
    module._moec_activation = _activation(path, module, mlp.activation_fn)
    gate, up = (weights.pop(f"{path}.mlp.{name}") for name in ("w1", "v1"))
    both = lazy.concat([lazy.unmerged(w, count) for w in (gate, up)], 1)
    del mlp.w1, mlp.v1
    mlp.gate_up_proj = nn.Parameter(torch.empty(both.shape, dtype=both.dtype, device=META), requires_grad=False)
    weights[f"{path}.mlp.gate_up_proj"] = replace(both, relaid=True)
    place(f"{path}.mlp", mlp, "w2", weights, lambda w: lazy.transpose(lazy.unmerged(w, count), 1, 2))
    module.forward = MethodType(_in_one_matrix_forward, module)


def _in_one_matrix_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    mlp, rule = self.mlp, self._moec_activation.arguments()
    result: Tensor = torch.ops.moec.experts(rows, top_k_index, top_k_weights, mlp.gate_up_proj, mlp.w2, **rule)
    return result.view(hidden_states.shape[0], -1, hidden_states.shape[-1])


def _without_gate(path: str, module: Any, weights: dict[str, Weight]) -> None:
    """nomic-embed-text-v2-moe: `w1` and `w2` are `[E*I, H]`, up and down; a bias `[H]` is added at the end."""
    mlp = module.mlp
    found = identify(mlp.activation_fn, False, (module,))
    if found is None:
        raise refuse(path, module, "has an activation that is none of those that moec knows")
    module._moec_activation, count = found.activation, mlp.w1.shape[0] // mlp.ffn_hidden_size
    place(f"{path}.mlp", mlp, "w1", weights, lambda w: lazy.unmerged(w, count))
    place(f"{path}.mlp", mlp, "w2", weights, lambda w: lazy.transpose(lazy.unmerged(w, count), 1, 2))
    module.forward = MethodType(_without_gate_forward, module)


def _without_gate_forward(self: Any, x: Tensor, weights: Tensor, top_weights: Tensor, top_experts: Tensor) -> Tensor:
    rows, rule = x.reshape(-1, x.shape[-1]), self._moec_activation.arguments()
    mixed: Tensor = torch.ops.moec.experts(rows, top_experts, top_weights, self.mlp.w1, self.mlp.w2, **rule)
    return mixed.view(x.shape) + self.bias


def _with_zero_experts(path: str, module: Any, weights: dict[str, Weight]) -> None:
    """LongCat: the experts behind the last matrix give back what they get."""
    module._moec_activation = _activation(path, module, module.act_fn)
    place(path, module, "gate_up_proj", weights, lambda w: lazy.rows(w, 0, module.num_routed_experts))
    module.forward = MethodType(_with_zero_experts_forward, module)


def _with_zero_experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    passes = top_k_index >= self.num_routed_experts
    ids, shares = top_k_index.masked_fill(passes, 0), top_k_weights.masked_fill(passes, 0.0)
    rule = self._moec_activation.arguments()
    routed: Tensor = torch.ops.moec.experts(hidden_states, ids, shares, self.gate_up_proj, self.down_proj, **rule)
    share = top_k_weights.masked_fill(~passes, 0.0).sum(-1, keepdim=True)
    return routed + (hidden_states * share).to(hidden_states.dtype)


def _activation(path: str, module: Any, function: Callable[[Tensor], Tensor]) -> Activation:
    found = identify(gate_of(function), True, (module,))
    if found is None or found.order != "gate_up":
        raise unknown_gate(path, module)
    return found.activation


# ---------------------------------------------------------------------- proof
def _small(module: Any, layout: Layout) -> Any:
    """The same module with few numbers, which are drawn: sizes are changed wherever they stand."""
    small, generator = deepcopy(module), torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "down_proj": (-1, _HIDDEN, _INTERMEDIATE),
        "gate_up_proj": (-1, 2 * _INTERMEDIATE, _HIDDEN),
    }
    if layout in (_in_one_matrix, _without_gate):
        count = module.mlp.w1.shape[0] // module.mlp.ffn_hidden_size
        shapes = dict.fromkeys(("w1", "v1", "w2"), (count * _INTERMEDIATE, _HIDDEN)) | {"bias": (_HIDDEN,)}
    for part in small.modules():
        for name in _SIZES.keys() & vars(part).keys():
            setattr(part, name, _SIZES[name])
        for name, parameter in list(part._parameters.items()):
            shape = [n if n > 0 else old for n, old in zip(shapes[name], parameter.shape, strict=True)]
            setattr(part, name, nn.Parameter(torch.randn(shape, generator=generator) * 0.3, requires_grad=False))
    return small


def _adapted(module: Any, layout: Layout) -> Any:
    adapted = deepcopy(module)
    table = {f"small.{name}": lazy.from_tensor(value, name) for name, value in module.named_parameters()}
    layout("small", adapted, table)
    for name, weight in table.items():
        owner, _, last = name.removeprefix("small.").rpartition(".")
        setattr(adapted.get_submodule(owner), last, nn.Parameter(weight.load(), requires_grad=False))
    return adapted


def _difference(module: Any, adapted: Any, layout: Layout) -> float:
    """The largest difference on drawn tokens, over the spread; every expert is chosen, and some tokens choose one
    twice."""
    names = ("total_experts", "num_experts", "moe_num_experts")
    count = next(getattr(module, name) for name in names if hasattr(module, name))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3 * count, _HIDDEN, generator=generator)
    ids = torch.stack([torch.arange(3 * count) % count, torch.randint(count, (3 * count,), generator=generator)], 1)
    shares = torch.rand(ids.shape, generator=generator)
    with torch.no_grad():
        given = (x[None], shares, shares, ids) if layout is _without_gate else (x, ids, shares)
        wanted, found = module(*given), adapted(*given)
    return apart(found, wanted)
