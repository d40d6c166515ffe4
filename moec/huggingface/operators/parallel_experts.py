"""JetMoE's blocks (arXiv 2404.07413), whose matrices stand in `input_linear` and `output_linear`: a mixture of
feed-forward experts, and a mixture of attention, in which each expert has a projection of queries and one of what
attention gives. They sort tokens by expert with counts that no tracer follows.

A block is taken for one by its parts, and proven on a copy of itself that is made small.
"""

from __future__ import annotations

from copy import deepcopy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.huggingface.operators.experts import WAY_OUT, refuse
from moec.huggingface.operators.gate import gate_of, identify
from moec.huggingface.operators.proven import apart, require_same

_HIDDEN, _INNER = 16, 12  # of the small copy
_PARTS = {"input_linear.weight", "output_linear.weight", "router.layer.weight", "bias"}


def is_parallel(module: nn.Module) -> bool:
    """Whether a module has the parts of such a block."""
    own = {name: value.dim() for name, value in module.named_parameters()}
    return set(own) == _PARTS and own["input_linear.weight"] == own["output_linear.weight"] == 3


def adapt_parallel(path: str, module: Any) -> None:
    """Rewrite such a block of a captured copy to `moec::route`, and `moec::experts` or a product for each expert, in
    place. Its weights stay as they are stored.

    Raises:
        MoecError: M206 when it computes something else than its parts suggest.
    """
    small = _small(module)
    rewritten = deepcopy(small)
    _rewrite(path, rewritten)
    with torch.no_grad():
        pairs = list(zip(_results(small), _results(rewritten), strict=True))
    require_same(max(apart(found, wanted) for wanted, found in pairs), path, module, fix=WAY_OUT)
    _rewrite(path, module)


def _is_attention(module: Any) -> bool:
    return hasattr(module, "map") and hasattr(module, "reduce")


def _rewrite(path: str, module: Any) -> None:
    if _is_attention(module):
        module.map, module.reduce = MethodType(_map, module), MethodType(_reduce, module)
        return

    found = identify(gate_of(module.activation), True, (module,))
    if found is None or found.order != "gate_up":
        raise refuse(path, module, "has a gate that is none of those that moec knows")
    module._moec_activation = found.activation
    module.forward = MethodType(_mix, module)


# ---------------------------------------------------------------------- the other form
def _routed(self: Any, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and ids `[T, K]`, and logits `[T, E]`."""
    logits = self.router.layer(rows).float()
    weights, ids = torch.ops.moec.route(logits, None, top_k=self.router.top_k, combine="softmax")
    return weights.to(rows.dtype), ids, logits


def _mix(self: Any, layer_input: Tensor) -> Tensor:
    rows = layer_input.reshape(-1, layer_input.shape[-1])
    weights, ids, _ = _routed(self, rows)
    matrices, rule = (self.input_linear.weight, self.output_linear.weight), self._moec_activation.arguments()
    mixed: Tensor = torch.ops.moec.experts(rows, ids, weights, *matrices, **rule)
    return mixed.view(layer_input.shape) + self.bias


def _map(self: Any, layer_input: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Queries of each token's experts, `[batch, length, K, D]`: a product for each expert, over the rows that chose
    it."""
    rows = layer_input.reshape(-1, layer_input.shape[-1])
    weights, ids, logits = _routed(self, rows)
    queries = rows.new_zeros(rows.shape[0], ids.shape[-1], self.input_linear.weight.shape[1])
    for expert, matrix in enumerate(self.input_linear.weight):
        token, nth = _chose(ids, expert)
        queries = queries.index_put((token, nth), F.linear(rows[token], matrix))
    return queries.view(*layer_input.shape[:-1], ids.shape[-1], -1), logits, (ids, weights)


def _reduce(self: Any, layer_input: Tensor, topo_info: tuple[Tensor, Tensor]) -> Tensor:
    """What attention gives each expert `[batch, length, K, D]`, projected by the experts and weighed."""
    ids, weights = topo_info
    given = layer_input.reshape(*ids.shape, -1)
    found = given.new_zeros(ids.shape[0], self.output_linear.weight.shape[1])
    for expert, matrix in enumerate(self.output_linear.weight):
        token, nth = _chose(ids, expert)
        found = found.index_add(0, token, F.linear(given[token, nth], matrix) * weights[token, nth, None])
    return found.view(*layer_input.shape[:2], -1) + self.bias


def _chose(ids: Tensor, expert: int) -> tuple[Tensor, ...]:
    """The places of `ids` `[T, K]` that hold an expert; all of them where only shapes are asked for, without a tracer
    that has a symbol for their number."""
    if type(ids) is Tensor and ids.is_meta:
        return ids.new_empty(ids.numel()), ids.new_empty(ids.numel())
    return torch.where(ids == expert)


# ---------------------------------------------------------------------- proof
def _small(module: Any) -> Any:
    """The same block with few numbers, which are drawn."""
    small, generator = deepcopy(module), torch.Generator().manual_seed(0)
    count, rows = small.input_linear.num_experts, _INNER if _is_attention(module) else 2 * _INNER
    small.input_size, small.hidden_size = _HIDDEN, _INNER
    shapes = {
        "input_linear.weight": (count, rows, _HIDDEN), "output_linear.weight": (count, _HIDDEN, _INNER),
        "router.layer.weight": (count, _HIDDEN), "bias": (_HIDDEN,),
    }  # fmt: skip
    for name, shape in shapes.items():
        owner, _, last = name.rpartition(".")
        value = nn.Parameter(torch.randn(shape, generator=generator) * 0.4, requires_grad=False)
        setattr(small.get_submodule(owner), last, value)
    return small.eval()


def _results(module: Any) -> list[Tensor]:
    x = torch.randn(3, 11, _HIDDEN, generator=torch.Generator().manual_seed(1))
    if not _is_attention(module):
        return [module(x)]
    queries, logits, topology = module.map(x)
    return [queries, logits, module.reduce(queries.tanh(), topology)]
