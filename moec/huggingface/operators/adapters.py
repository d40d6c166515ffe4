"""Mixture-of-experts modules outside transformers' experts interface: one adapter each, proven on a small instance
before use."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.errors import MoecError
from moec.frontend.refusals import came_through, depends_on_data
from moec.huggingface.operators.called_with_ids import adapt_called_with_ids
from moec.huggingface.operators.dropping import adapt_dropping, is_dropping
from moec.huggingface.operators.experts import WAY_OUT, check_shapes, in_interface, place, refuse
from moec.huggingface.operators.gate import gate_of, identify
from moec.huggingface.operators.parallel_experts import adapt_parallel, is_parallel
from moec.huggingface.operators.proven import apart, require_same, small_instance
from moec.weights.lazy import Weight, transpose

_SMALL = {"hidden_size": 16, "intermediate_size": 12, "num_local_experts": 5, "num_experts_per_tok": 2}


def adapt(model: nn.Module, weights: dict[str, Weight]) -> int:
    """Rewrite known MoE modules of a captured copy to `moec::experts`, in place; returns how many.

    Raises:
        MoecError: M206 when a module has the parts of a known one but does not compute what it does.
    """
    found = {path: m for path, m in model.named_modules() if is_input_scaled(m)}
    for path, module in found.items():
        _prove(path, module)
        _input_scaled(path, module, weights)
    dropping = {path: m for path, m in model.named_modules() if is_dropping(m)}
    for path, module in dropping.items():
        adapt_dropping(path, module, weights)
    parallel = {path: m for path, m in model.named_modules() if is_parallel(m)}
    for path, module in parallel.items():
        adapt_parallel(path, module)
    others = [(p, m) for p, m in model.named_modules() if p.endswith("experts") and not in_interface(m)]
    return (
        len(found)
        + len(dropping)
        + len(parallel)
        + sum(adapt_called_with_ids(p, m, weights) for p, m in others if p not in found)
    )


def unknown_experts(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The first module called `experts` that neither the interface nor an adapter takes."""
    for path, module in model.named_modules():
        if (
            path.rsplit(".", 1)[-1] == "experts"
            and not in_interface(module)
            and not hasattr(module, "_moec_activation")
        ):
            return path, module
    return None


def explain(model: nn.Module, error: MoecError) -> MoecError | None:
    """A better error (M206) for a failed capture (M207), when the reason is a loop over experts that moec has no
    adapter for."""
    found = unknown_experts(model)
    if error.code != "M207" or found is None:
        return None
    inside = came_through(error, type(found[1]))
    if not inside and depends_on_data(error):
        return None  # a branch elsewhere in the model is the reason
    if type(found[1]).__module__.startswith("peft."):
        fix = "compile what its merge_and_unload() returns, or the adapter's folder, which moec merges"
        return MoecError("M206", "an adapter on the experts is not merged", found[0], fix)
    also = "" if inside else f"; and {error.what}"
    return refuse(*found, f"is outside transformers' experts interface, and moec has no adapter for it{also}")


def is_input_scaled(module: nn.Module) -> bool:
    """Llama 4's structure: a linear router, stacked `[E, in, out]` experts outside the interface, a shared expert
    beside them."""
    parts = dict(module.named_children())
    experts = parts.get("experts")
    stacked = (
        isinstance(experts, nn.Module)
        and not in_interface(experts)
        and {"gate_up_proj", "down_proj"} <= set(experts._parameters)
    )
    return (
        stacked
        and isinstance(parts.get("router"), nn.Linear)
        and hasattr(parts["router"], "top_k")
        and "shared_expert" in parts
    )


def _input_scaled(path: str, module: Any, weights: dict[str, Weight]) -> None:
    """Llama 4: the sigmoid of a chosen logit multiplies the expert's input."""
    gate = identify(gate_of(module.experts.act_fn), True, (module.experts,))
    if gate is None or gate.order != "gate_up":
        raise refuse(f"{path}.experts", module.experts, "has a gate that is none of those that moec knows")
    for name in ("gate_up_proj", "down_proj"):
        place(f"{path}.experts", module.experts, name, weights, lambda w: transpose(w, 1, 2))
    check_shapes(f"{path}.experts", module.experts, "gate_up_proj", gate)
    module.experts._moec_activation = gate.activation
    module.forward = MethodType(_input_scaled_forward, module)


def _input_scaled_forward(self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    logits = F.linear(rows, self.router.weight, self.router.bias)
    scores, ids = torch.ops.moec.route(logits, None, top_k=self.router.top_k, score="sigmoid", combine="scores")
    experts = self.experts
    rule = experts._moec_activation.arguments()
    routed = torch.ops.moec.experts(
        rows, ids, scores.to(rows.dtype), experts.gate_up_proj, experts.down_proj, score_before=True, **rule
    )
    return self.shared_expert(rows) + routed, logits


def _prove(path: str, module: nn.Module) -> None:
    """Compare the adapter with the module's own forward on a small random instance of its class."""
    config = getattr(module, "config", None) or module.shared_expert.config  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(0)
    small = small_instance(module, config, _SMALL, generator)
    with torch.no_grad():
        x = torch.randn(2, 7, _SMALL["hidden_size"], generator=generator)
        wanted = small(x)[0]
        table: dict[str, Weight] = {}
        values = {n: p.detach().transpose(1, 2) for n, p in small.experts.named_parameters()}  # type: ignore[union-attr]
        _input_scaled("", small, table)
        for name, weight in values.items():
            setattr(small.experts, name, nn.Parameter(weight))
        difference = apart(small(x)[0], wanted)
    require_same(difference, path, module, fix=WAY_OUT)
