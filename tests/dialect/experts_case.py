"""Random experts for the dialect's tests, and what they compute: one token, one expert at a time, in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moec.dialect import Activation

HIDDEN, INNER, EXPERTS = 5, 7, 6

FUNCTIONS: dict[str, Callable[[float, float], float]] = {
    "silu": lambda x, alpha: x / (1 + math.exp(-alpha * x)),
    "gelu": lambda x, _: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x, _: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x, _: max(x, 0.0),
    "relu2": lambda x, _: max(x, 0.0) ** 2,
    "tanh": lambda x, _: math.tanh(x),
    "sigmoid": lambda x, _: 1 / (1 + math.exp(-x)),
    "identity": lambda x, _: x,
}
ACTIVATIONS = {
    **{name: Activation(name) for name in FUNCTIONS},
    **{f"plain {name}": Activation(name, gated=False) for name in FUNCTIONS},
    "quick-gelu": Activation("silu", gated=False, alpha=1.702),
    "gpt-oss": Activation("silu", alpha=1.702, beta=1.0, limit=1.2),
    "clamped": Activation("silu", limit=0.8),
    "clamped after": Activation("gelu", limit=0.5, clamp_after=True),
    "beta alone": Activation("relu", beta=0.5),
}


@dataclass
class Case:
    """Tensors of one call of `moec::experts`, in float64."""

    x: Tensor
    ids: Tensor
    weights: Tensor
    w_in: Tensor
    w_out: Tensor
    b_in: Tensor | None
    b_out: Tensor | None

    def tensors(self) -> tuple[Any, ...]:
        return self.x, self.ids, self.weights, self.w_in, self.w_out, self.b_in, self.b_out

    def to(self, dtype: torch.dtype) -> Case:
        return Case(*(t.to(dtype) if t is not None and t.is_floating_point() else t for t in self.tensors()))

    def naive(self, rule: Activation, score_before: bool = False) -> Tensor:
        rows = self.x.double().reshape(-1, HIDDEN).numpy()
        out = np.zeros_like(rows)
        ids, weights = (t.reshape(-1, self.ids.shape[-1]).double().numpy() for t in (self.ids, self.weights))
        for t, row in enumerate(rows):
            for e, w in zip(ids[t], weights[t], strict=True):
                given = row * w if score_before else row
                out[t] += self._naive_expert(int(e), given, rule) * (1.0 if score_before else w)
        return torch.from_numpy(out).reshape(self.x.shape)

    def _naive_expert(self, e: int, row: Any, rule: Activation) -> Any:
        h = self.w_in[e].double().numpy() @ row + (0 if self.b_in is None else self.b_in[e].double().numpy())
        active = np.array([naive_neuron(rule, *h[i::INNER]) for i in range(INNER)])
        return self.w_out[e].double().numpy() @ active + (0 if self.b_out is None else self.b_out[e].double().numpy())


def naive_neuron(rule: Activation, gate: float, up: float = 1.0) -> float:
    """One hidden neuron of an expert."""
    function = FUNCTIONS[rule.name]
    if not rule.gated:
        return function(gate, rule.alpha)
    limit = rule.limit or math.inf
    value = min(function(gate, rule.alpha), limit) if rule.clamp_after else function(min(gate, limit), rule.alpha)
    return value * (max(-limit, min(up, limit)) + rule.beta)


def case(
    rule: Activation = Activation(),  # noqa: B008  # immutable
    top_k: int = 2,
    biases: bool = False,
    shape: tuple[int, ...] = (9,),
    used: int = EXPERTS,
) -> Case:
    """Random tensors; only the first `used` experts are chosen."""
    generator = torch.Generator().manual_seed(0)
    ids = _draw(generator, *shape, used).topk(min(top_k, used)).indices
    wide = rule.rows_per_neuron * INNER
    b_in, b_out = (_draw(generator, EXPERTS, wide), _draw(generator, EXPERTS, HIDDEN)) if biases else (None, None)
    return Case(
        _draw(generator, *shape, HIDDEN),
        ids,
        _draw(generator, *ids.shape).abs(),
        _draw(generator, EXPERTS, wide, HIDDEN) * 0.7,
        _draw(generator, EXPERTS, HIDDEN, INNER) * 0.7,
        b_in,
        b_out,
    )


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
