"""One experts implementation for transformers: every experts block becomes a single `moec::experts` in its canonical
layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moec.dialect import Activation
from moec.errors import MoecError
from moec.huggingface.operators.gate import Gate, canonical, identify
from moec.program.program import META
from moec.weights.lazy import Weight, rearranged, transpose

IMPLEMENTATION = "moec"
WAY_OUT = "compile another model, or give moec the model as a .pt2 with the experts written in plain PyTorch"


def use_moec_experts(model: Any, weights: dict[str, Weight]) -> int:
    """Switch every module of the experts interface in a captured copy to `moec::experts`; returns how many there are.

    Parameters that are interleaved or transposed are replaced by canonical ones (`[E, F*I, H]` gate rows first, `[E, H,
    I]`), and their entries in `weights` by lazy expressions.

    Args:
        model: a `PreTrainedModel` on the meta device that nobody else uses.
        weights: its lazy weights, changed in place.

    Raises:
        MoecError: M206 naming the module, when its gate is not one that moec knows, or its experts are not alike.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    found = {path: module for path, module in model.named_modules() if in_interface(module)}
    if not found:
        return 0
    for path, module in found.items():
        _canonicalize(path, module, weights)
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _forward)
    model.set_experts_implementation(IMPLEMENTATION)
    return len(found)


def in_interface(module: nn.Module) -> bool:
    """Whether transformers dispatches this module's forward to the experts implementation that is set."""
    return hasattr(module, "is_transposed") and hasattr(module, "has_gate") and hasattr(module, "_is_expert_parallel")


def refuse(path: str, module: nn.Module, reason: str) -> MoecError:
    """M206 for an experts module that cannot be converted."""
    return MoecError("M206", f"{type(module).__name__} {reason}", path, WAY_OUT)


def unknown_gate(path: str, module: nn.Module) -> MoecError:
    """M206 for experts whose activation is none of moec's."""
    return refuse(path, module, "has a gate that is none of those that moec knows")


def _forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The experts implementation: what transformers calls in place of the module's own forward."""
    first, suffix = ("gate_up_proj" if self.has_gate else "up_proj"), "_bias"
    ids = top_k_index if top_k_index.dtype == torch.int64 else top_k_index.to(torch.int64)
    bias_in, bias_out = (
        (getattr(self, first + suffix), getattr(self, "down_proj" + suffix)) if self.has_bias else (None, None)
    )
    rule: Activation = self._moec_activation
    matrices = getattr(self, first), self.down_proj, bias_in, bias_out
    if self.has_post_expert_norm:
        return _normalised(self, hidden_states, ids, top_k_weights, *matrices)
    result: Tensor = torch.ops.moec.experts(hidden_states, ids, top_k_weights, *matrices, **rule.arguments())
    return result


def _normalised(self: Any, x: Tensor, ids: Tensor, weights: Tensor, *matrices: Tensor | None) -> Tensor:
    """Experts whose outputs go through a norm before they are weighted and added up (Muse Spark): each token stands
    once for each of its experts, as a token with one expert, so that the operator's outputs are those of the experts.

    Args:
        x: tokens `[T, H]`. ids, weights: `[T, K]`. matrices: as `moec::experts` takes them.
    """
    each = x.unsqueeze(1).expand(-1, ids.shape[1], -1)
    rule: Activation = self._moec_activation
    said = torch.ops.moec.experts(
        each, ids.unsqueeze(-1), torch.ones_like(weights).unsqueeze(-1), *matrices, **rule.arguments()
    )
    return (self.post_expert_norm(said) * weights.unsqueeze(-1)).sum(1).to(x.dtype)


def _canonicalize(path: str, module: Any, weights: dict[str, Weight]) -> None:
    if module._is_expert_parallel:
        raise refuse(path, module, "is one rank of an expert-parallel model")
    if getattr(module, "_moec_rearranged", False):
        raise MoecError(
            "M206",
            "moec.accelerate has put this block's rows in order",
            path,
            "compile the model before it is accelerated, or load it anew",
        )
    gate = identify(module._apply_gate if module.has_gate else module.act_fn, module.has_gate, (module, module.config))
    if gate is None:
        raise unknown_gate(path, module)
    first = "gate_up_proj" if module.has_gate else "up_proj"
    place(path, module, first, weights, partial(canonical_layout, gate=gate, transposed=module.is_transposed))
    place(path, module, "down_proj", weights, partial(canonical_layout, gate=None, transposed=module.is_transposed))
    if module.has_bias:
        place(path, module, f"{first}_bias", weights, partial(canonical_layout, gate=gate, transposed=False))
    check_shapes(path, module, first, gate)
    module._moec_activation = gate.activation


def check_shapes(path: str, module: Any, first: str, gate: Gate) -> None:
    """Raise M206 unless the canonical parameters fit together; experts that compute nothing ("identity") show here."""
    w_in, w_out = getattr(module, first), module.down_proj
    factor = gate.activation.rows_per_neuron
    if w_in.dim() != 3 or w_out.dim() != 3 or w_in.shape != (w_out.shape[0], factor * w_out.shape[2], w_out.shape[1]):
        raise refuse(
            path,
            module,
            f"has weights {list(w_in.shape)} and {list(w_out.shape)}, which are not those of equal experts",
        )


def place(
    path: str, module: nn.Module, name: str, weights: dict[str, Weight], change: Callable[[Weight], Weight]
) -> None:
    """Put a parameter through a change of layout: a new meta parameter in the module, an expression in the table."""
    full = f"{path}.{name}"
    value: Tensor = getattr(module, name)
    stand_in = Weight(tuple(value.shape), value.dtype, full, lambda _a, _b: value)
    shape = change(stand_in).shape
    setattr(module, name, nn.Parameter(torch.empty(shape, dtype=value.dtype, device=META), requires_grad=False))
    if full in weights:
        changed = change(weights[full])
        weights[full] = changed if changed is weights[full] else replace(changed, relaid=True)


def canonical_layout(weight: Weight, gate: Gate | None, transposed: bool = False) -> Weight:
    """Canonical `[E, out, in]` (or a bias `[E, out]`) of a stored tensor."""
    result = transpose(weight, 1, 2) if transposed else weight
    if gate is None or gate.order == "gate_up":
        return result
    order = gate.order
    return rearranged(order, lambda t: canonical(t, order, 1), result)
