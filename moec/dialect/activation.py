"""What stands between the two matrix products of an expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# name -> function(x, alpha); alpha scales the sigmoid's argument in silu only (quick-gelu is silu with alpha 1.702)
ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "silu": lambda x, alpha: F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x),
    "gelu": lambda x, _: F.gelu(x),
    "gelu_tanh": lambda x, _: F.gelu(x, approximate="tanh"),
    "relu": lambda x, _: F.relu(x),
    "relu2": lambda x, _: F.relu(x).square(),
    "tanh": lambda x, _: torch.tanh(x),
    "sigmoid": lambda x, _: torch.sigmoid(x),
    "identity": lambda x, _: x,
}


@dataclass(frozen=True)
class Activation:
    """An expert's activation, plain or gated, as data.

    Plain: `f(h)`. Gated (SwiGLU, GeGLU, …; Shazeer 2020, arXiv 2002.05202): with `g, u = h.chunk(2, -1)`, `f(g) * (u + beta)`.

    Attributes:
        name: the function f, a key of `ACTIVATIONS`.
        gated: whether the input holds gate and up halves, gate first.
        alpha: factor of the sigmoid's argument in `silu` (gpt-oss: 1.702).
        beta: added to the up half after clamping (gpt-oss: 1).
        limit: clamp of gate (from above) and up (both sides) before f; 0 means none. With `clamp_after`, f's result is clamped
            from above instead of the gate.
    """

    name: str = "silu"
    gated: bool = True
    alpha: float = 1.0
    beta: float = 0.0
    limit: float = 0.0
    clamp_after: bool = False

    def __call__(self, h: Tensor) -> Tensor:
        """Apply to `[..., F*I]`; returns `[..., I]` (F is 2 when gated, else 1)."""
        function = ACTIVATIONS[self.name]
        if not self.gated:
            return function(h, self.alpha)
        gate, up = h.chunk(2, dim=-1)
        if self.limit:
            up = up.clamp(-self.limit, self.limit)
            gate = function(gate, self.alpha).clamp(max=self.limit) if self.clamp_after else function(gate.clamp(max=self.limit), self.alpha)
        else:
            gate = function(gate, self.alpha)
        return gate * (up + self.beta if self.beta else up)

    @property
    def rows_per_neuron(self) -> int:
        """F: how many rows of the first matrix make one hidden neuron."""
        return 2 if self.gated else 1

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `moec::experts` and `moec::moe` that say this activation."""
        values = asdict(self)
        return {"activation": values.pop("name"), **values}

    @classmethod
    def of(cls, kwargs: dict[str, Any]) -> Activation:
        """Read it back from a node's keyword arguments."""
        names = {"activation": "name", "gated": "gated", "alpha": "alpha", "beta": "beta", "limit": "limit", "clamp_after": "clamp_after"}
        return cls(**{field: kwargs[key] for key, field in names.items() if key in kwargs})
