"""MiniMax's lightning attention, https://arxiv.org/abs/2501.08313, as `moec::linear_attention`: transformers computes
it in blocks where nothing came before, and token by token after that.

A module is taken for one by its parts, and proven on a copy of itself that is made small.
"""

from __future__ import annotations

from copy import deepcopy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from moec.huggingface.operators.arguments import refuse_others
from moec.huggingface.operators.proven import UNSUPPORTED, apart, require_same

_PARTS = {"qkv_proj", "out_proj", "output_gate", "norm", "act_fn"}
_HEAD, _HIDDEN, _BLOCK = 6, 20, 4  # of the small copy
_CUTS = ((0, 9), (9, 10), (10, 13))  # what the copy is fed: a prompt of blocks and a rest, a token, and three


def use_moec_lightning(model: nn.Module) -> int:
    """Let every lightning attention of a captured copy be one operator that goes on from any state; returns how many.

    Raises:
        MoecError: M206 when a module has the parts of one and computes something else.
    """
    found = [(path, module) for path, module in model.named_modules() if _is_lightning(module)]
    for path, module in found:
        require_same(_difference(module), path, module, "is not what its parts suggest", UNSUPPORTED)
        module.forward = MethodType(_forward, module)
    return len(found)


def _is_lightning(module: nn.Module) -> bool:
    return set(module._modules) >= _PARTS and "slope_rate" in module._buffers and hasattr(module, "block_size")


def _forward(
    self: Any, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Tensor | None = None,
    past_key_values: Any = None, **others: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Instead of the module's own; `attention_mask` is `[B, S]`, 0 at padding, which changes no state."""
    refuse_others(others, "lightning attention")
    batch, length, _ = hidden_states.shape
    heads, size, decay = self.num_attention_heads, self.head_dim, -self.slope_rate.reshape(1, 1, -1)
    rows = self.act_fn(self.qkv_proj(hidden_states))
    decay = decay.expand(batch, length, -1)
    if attention_mask is not None:
        seen = attention_mask[:, :, None]
        rows, decay = (rows * seen).to(rows.dtype), (decay * seen).to(decay.dtype)
    query, key, value = rows.reshape(batch, length, heads, 3 * size).split(size, -1)
    state = None if past_key_values is None else past_key_values.get_linear_cache(self.layer_idx)
    if state is None:
        state = value.new_zeros((batch, heads, size, size))
    y, after = torch.ops.moec.linear_attention(query, key, value, state, decay, scale=1.0)
    if past_key_values is not None:
        past_key_values.set_linear_cache(self.layer_idx, after)
    y = self.norm(y.reshape(batch, length, heads * size))
    return self.out_proj(torch.sigmoid(self.output_gate(hidden_states)) * y), after


# ---------------------------------------------------------------------- proof
class _OwnCache:
    """The state of one module, as both forwards ask for it."""

    def __init__(self) -> None:
        self._state: Tensor | None = None

    def get_linear_cache(self, layer: int) -> Tensor | None:
        return self._state

    def set_linear_cache(self, layer: int, state: Tensor) -> None:
        self._state = state


def _difference(module: Any) -> float:
    """The largest difference of outputs and state on drawn tokens, over the spread: the same pieces to both."""
    with _disable_current_modes(), torch.device("cpu"):
        return _difference_of(_small(module))


def _difference_of(small: Any) -> float:
    generator = torch.Generator().manual_seed(1)
    other, caches, worst = deepcopy(small), (_OwnCache(), _OwnCache()), 0.0
    other.forward = MethodType(_forward, other)
    x = torch.randn((2, _CUTS[-1][1], _HIDDEN), generator=generator)
    mask = torch.ones(x.shape[:2], dtype=torch.int64)
    mask[0, :3] = 0
    for start, end in _CUTS:
        given = {"position_embeddings": (None, None), "attention_mask": mask[:, start:end]}
        with torch.no_grad():
            pairs = [
                each(x[:, start:end], past_key_values=cache, **given)
                for each, cache in zip((small, other), caches, strict=True)
            ]
        worst = max(worst, *(apart(got, want) for want, got in zip(*pairs, strict=True)))
    return worst


def _small(module: Any) -> Any:
    """The same module with few numbers, which are drawn; how fast each head forgets is computed by its class."""
    small, generator = deepcopy(module), torch.Generator().manual_seed(0)
    small.head_dim, small.block_size, wide = _HEAD, _BLOCK, module.num_attention_heads * _HEAD
    shapes: dict[str, tuple[int, ...]] = {"norm": (wide,), "out_proj": (_HIDDEN, wide)}
    shapes |= {"qkv_proj": (3 * wide, _HIDDEN), "output_gate": (wide, _HIDDEN)}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator) * 0.3
        getattr(small, name).weight = nn.Parameter(drawn, requires_grad=False)
    small.slope_rate = small.get_slope_rate(device="cpu")
    small.query_decay, small.key_decay, small.diagonal_decay = small.decay_factors(small.slope_rate)
    return small
