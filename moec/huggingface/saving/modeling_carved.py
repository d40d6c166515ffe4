"""Feed-forward networks that were cut into experts (`carve` of moec), for transformers.

moec copies this file beside the weights of a carved model; the classes at its end say which model it is. It computes
with plain PyTorch and transformers' own experts, so it runs wherever transformers does. Files that say `auto_map` run
only where the user trusts them: `from_pretrained(folder, trust_remote_code=True)`.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation


class CarvedRouter(nn.Module):
    """Chooses a token's experts by linear scores; each that is chosen counts 1. Shared experts have a score that is
    above all others."""

    def __init__(self, experts: int, hidden: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(experts, hidden))
        self.bias = nn.Parameter(torch.empty(experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[T, H]` to scores `[T, E]`, ones `[T, K]` and ids `[T, K]`; in float32, whatever the tokens are in."""
        scores = F.linear(x.float(), self.weight.float(), self.bias.float())
        ids = scores.topk(self.top_k, dim=-1).indices
        return scores, torch.ones_like(ids, dtype=torch.float32), ids


@use_experts_implementation(has_bias=True)
class GatedExperts(nn.Module):
    """Experts `down(act(gate(x)) * up(x))` with biases, side by side."""

    def __init__(self, config: Any, experts: int, hidden: int, width: int, activation: str) -> None:
        super().__init__()
        self.num_experts, self.act_fn = experts, ACT2FN[activation]
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.gate_up_proj_bias = nn.Parameter(torch.empty(experts, 2 * width))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))
        self.down_proj_bias = nn.Parameter(torch.empty(experts, hidden))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`[T, H]` of `[T, H]`; transformers may put a faster kernel in its place."""
        return _one_by_one(self, hidden_states, top_k_index, top_k_weights, self._hidden)

    def _hidden(self, x: Tensor, e: int) -> Tensor:
        gate, up = F.linear(x, self.gate_up_proj[e], self.gate_up_proj_bias[e]).chunk(2, dim=-1)
        return self.act_fn(gate) * up


@use_experts_implementation(has_bias=True, has_gate=False)
class PlainExperts(nn.Module):
    """Experts `down(act(up(x)))` with biases, side by side."""

    def __init__(self, config: Any, experts: int, hidden: int, width: int, activation: str) -> None:
        super().__init__()
        self.num_experts, self.act_fn = experts, ACT2FN[activation]
        self.up_proj = nn.Parameter(torch.empty(experts, width, hidden))
        self.up_proj_bias = nn.Parameter(torch.empty(experts, width))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))
        self.down_proj_bias = nn.Parameter(torch.empty(experts, hidden))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`[T, H]` of `[T, H]`; transformers may put a faster kernel in its place."""
        return _one_by_one(self, hidden_states, top_k_index, top_k_weights, self._hidden)

    def _hidden(self, x: Tensor, e: int) -> Tensor:
        return self.act_fn(F.linear(x, self.up_proj[e], self.up_proj_bias[e]))


def _one_by_one(
    experts: Any, x: Tensor, ids: Tensor, weights: Tensor, hidden: Callable[[Tensor, int], Tensor]
) -> Tensor:
    y = torch.zeros_like(x)
    for e in range(experts.num_experts):  # of all tokens, so that no shape hangs on what is chosen
        said = F.linear(hidden(x, e), experts.down_proj[e], experts.down_proj_bias[e])
        y = y + (said * (weights * (ids == e)).sum(-1, keepdim=True)).to(y.dtype)
    return y


class CarvedNetwork(nn.Module):
    """What stands in the place of a feed-forward network: its neurons as experts, and what makes up for those that a
    token does not use."""

    def __init__(
        self, config: Any, experts: int, hidden: int, width: int, top_k: int, activation: str, gated: bool
    ) -> None:
        super().__init__()
        self.router = CarvedRouter(experts, hidden, top_k)
        self.experts = (GatedExperts if gated else PlainExperts)(config, experts, hidden, width, activation)
        self.constant = nn.Parameter(torch.empty(hidden))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[..., H]` of `[..., H]`."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, ids = self.router(rows)
        return self.experts(rows, ids, weights).reshape(hidden_states.shape) + self.constant


class Carved(nn.Module):
    """The dense model's class with other networks: `config.carved` says which, and how large they are."""

    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["router"]
    post_init: Callable[[], None]
    set_experts_implementation: Callable[[str | None], None]

    def __init__(self, config: Any, *inputs: Any, **kwargs: Any) -> None:
        asked, config._experts_implementation = config._experts_implementation, "eager"  # the dense parts know no other
        super().__init__(config, *inputs, **kwargs)
        for path, form in config.carved.items():
            parent, _, name = path.rpartition(".")
            setattr(self.get_submodule(parent), name, CarvedNetwork(config, **form))
        self.post_init()
        narrow = any(form["width"] % 8 for form in config.carved.values())  # what grouped_mm does not take
        self.set_experts_implementation(asked or ("eager" if narrow else None))
