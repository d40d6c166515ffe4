"""What stands between the two matrix products of an expert."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

# name -> derivative(x, alpha) of the function above
_SLOPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "silu": lambda x, alpha: (s := torch.sigmoid(alpha * x)) * (1 + alpha * x * (1 - s)),
    "gelu": lambda x, _: torch.ops.aten.gelu_backward(torch.ones_like(x), x),
    "gelu_tanh": lambda x, _: torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate="tanh"),
    "relu": lambda x, _: (x > 0).to(x.dtype),
    "relu2": lambda x, _: 2 * F.relu(x),
    "tanh": lambda x, _: 1 - torch.tanh(x).square(),
    "sigmoid": lambda x, _: (s := torch.sigmoid(x)) * (1 - s),
    "identity": lambda x, _: torch.ones_like(x),
}


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """`x`, bent so that it stays between -cap and cap."""
    return cap * torch.tanh(x / cap)


@dataclass(frozen=True)
class Activation:
    """An expert's activation, plain or gated, as data.

    Plain: `f(h)`. Gated (SwiGLU, GeGLU, …; Shazeer 2020, arXiv 2002.05202): with `g, u = h.chunk(2, -1)`, `f(g) * (u +
    beta)`.

    Attributes:
        name: the function f, a key of `ACTIVATIONS`.
        gated: whether the input holds gate and up halves, gate first.
        alpha: factor of the sigmoid's argument in `silu` (gpt-oss: 1.702).
        beta: added to the up half after clamping (gpt-oss: 1).
        limit: clamp of gate (from above) and up (both sides) before f; 0 means none. With `clamp_after`, f's result is
            clamped from above instead of the gate.
        cap: soft cap `cap * tanh(g / cap)` of the factor g of a gated silu, not of the sigmoid's argument (Inkling 2).
        up_cap: the same of the up half. 0 means none of either.

    Raises:
        ValueError: for a soft cap beside a limit, which no model has.
    """

    name: str = "silu"
    gated: bool = True
    alpha: float = 1.0
    beta: float = 0.0
    limit: float = 0.0
    clamp_after: bool = False
    cap: float = 0.0
    up_cap: float = 0.0

    def __post_init__(self) -> None:
        if self.limit and (self.cap or self.up_cap):
            raise ValueError(f"a limit ({self.limit}) and a soft cap ({self.cap or self.up_cap}) do not go together")

    def __call__(self, h: Tensor) -> Tensor:
        """Apply to `[..., F*I]`; returns `[..., I]` (F is 2 when gated, else 1)."""
        if not self.gated:
            return ACTIVATIONS[self.name](h, self.alpha)
        gate, up = h.chunk(2, dim=-1)
        return self._gate(gate) * self._up(up)

    def _gate(self, gate: Tensor) -> Tensor:
        function = ACTIVATIONS[self.name]
        if self.cap:
            return soft_cap(gate, self.cap) * torch.sigmoid(self.alpha * gate)
        if not self.limit:
            return function(gate, self.alpha)
        return (
            function(gate, self.alpha).clamp(max=self.limit)
            if self.clamp_after
            else function(gate.clamp(max=self.limit), self.alpha)
        )

    def _up(self, up: Tensor) -> Tensor:
        up = up.clamp(-self.limit, self.limit) if self.limit else up
        up = soft_cap(up, self.up_cap) if self.up_cap else up
        return up + self.beta if self.beta else up

    def pull_back(self, h: Tensor, grad: Tensor) -> Tensor:
        """Gradient of `h` `[..., F*I]` from that of the result `[..., I]`."""
        slope = _SLOPES[self.name]
        if not self.gated:
            return grad * slope(h, self.alpha)
        gate, up = h.chunk(2, dim=-1)
        steep = self._capped_slope(gate) if self.cap else slope(gate, self.alpha)
        d_gate, d_up = grad * self._up(up) * steep, grad * self._gate(gate)
        if self.up_cap:
            d_up = d_up * (1 - torch.tanh(up / self.up_cap).square())
        if self.limit:
            # where a clamp holds a value, nothing flows back; elsewhere it changes nothing
            free = ACTIVATIONS[self.name](gate, self.alpha) if self.clamp_after else gate
            d_gate, d_up = d_gate * (free <= self.limit), d_up * (up.abs() <= self.limit)
        return torch.cat([d_gate, d_up], dim=-1)

    def _capped_slope(self, gate: Tensor) -> Tensor:
        bent, s = torch.tanh(gate / self.cap), torch.sigmoid(self.alpha * gate)
        return (1 - bent.square()) * s + self.cap * bent * self.alpha * s * (1 - s)

    @property
    def rows_per_neuron(self) -> int:
        """F: how many rows of the first matrix make one hidden neuron."""
        return 2 if self.gated else 1

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `moec::experts` and `moec::moe` that say this activation."""
        values = asdict(self)
        return {"activation": values.pop("name"), **values}

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> Activation:
        """Read it back from a node's keyword arguments."""
        names = {
            "activation": "name",
            "gated": "gated",
            "alpha": "alpha",
            "beta": "beta",
            "limit": "limit",
            "clamp_after": "clamp_after",
            "cap": "cap",
            "up_cap": "up_cap",
        }
        return cls(**{field: kwargs[key] for key, field in names.items() if key in kwargs})
