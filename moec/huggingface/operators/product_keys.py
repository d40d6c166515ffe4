"""Experts that are looked up by product keys (Doge), in a form that has no branch on the number of tokens.

Each expert is one neuron, a row of two tables. Half of a router's logits score the first part of an expert's number,
the other half the second; the pairs with the largest sums are chosen (PEER: https://arxiv.org/abs/2407.04153). The
module cuts the logits of all tokens of a call into those halves, so that a token's experts hang on other tokens, and on
padding. Here they are cut in the same way, by rows, without asking whether a call has an even number of tokens.

It is used where it says what the module itself says, on a small copy.
"""

from __future__ import annotations

from copy import deepcopy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from moec.huggingface.operators.attention import PADDING_LOOKS
from moec.huggingface.operators.proven import apart, modules_like, small_instance, take_over

_CALL = ["hidden_states", "kwargs"]
_PARTS = ("router_gate", "down_embed", "up_embed", "num_keys", "top_k", "norm_topk_prob", "act_fn", "gate_proj")
_SMALL = {"hidden_size": 16, "intermediate_size": 12, "num_experts": 25, "num_experts_per_tok": 3}
_TOKENS = ((1, 1), (1, 7), (3, 5), (2, 4))


def product_keys_of(model: nn.Module) -> dict[str, Any]:
    """Such mixtures of a model, by their paths."""
    return modules_like(model, _PARTS, _CALL)


def adapt_product_keys(model: nn.Module) -> int:
    """Give every such mixture of a captured copy a forward without the branch, in place; returns how many.

    Raises:
        MoecError: M206 when one has the parts of a known one and computes something else.
    """
    found = product_keys_of(model)
    take_over(found, "forward", _forward, lambda module: _difference(module, model.config))
    for module in found.values():
        setattr(module, PADDING_LOOKS, True)
    return len(found)


def _forward(self: Any, hidden_states: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """What the experts `[B, S, H]` say with the shared one, and the router's logits `[2, B*S, K]`."""
    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    halves = self.router_gate(rows).unflatten(-1, (2, self.num_keys)).flatten(0, 1)  # two rows a token, one below
    logits = torch.stack([halves[: rows.shape[0]], halves[rows.shape[0] :]])  # the first tokens' rows, the last ones'
    (first, second), (high, low) = logits.topk(self.num_keys, dim=-1)
    scores = (first.unsqueeze(-1) + second.unsqueeze(-2)).flatten(-2)
    numbers = (high.unsqueeze(-1) * self.num_keys + low.unsqueeze(-2)).flatten(-2)
    scores, places = scores.topk(self.top_k, dim=-1)
    experts, weights = numbers.gather(-1, places), scores.softmax(-1)
    if self.norm_topk_prob:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    inner = torch.matmul(self.down_embed(experts), rows.unsqueeze(-1)).squeeze(-1)
    routed = torch.matmul((self.act_fn(inner) * weights).unsqueeze(1), self.up_embed(experts)).squeeze(1)
    shared = self.down_proj(self.act_fn(self.gate_proj(rows)) * self.up_proj(rows))
    return (shared + routed).view(hidden_states.shape), logits


def _difference(module: Any, config: Any) -> float:
    """From a small random instance of its class, for odd and even numbers of tokens."""
    generator = torch.Generator().manual_seed(0)
    own = small_instance(module, config, {**_SMALL, "norm_topk_prob": module.norm_topk_prob}, generator)
    adapted = deepcopy(own)
    adapted.forward = MethodType(_forward, adapted)
    with torch.no_grad():
        given = [torch.randn(*shape, _SMALL["hidden_size"], generator=generator) for shape in _TOKENS]
        return max(apart(adapted(x)[0], own(x)[0]) for x in given)
