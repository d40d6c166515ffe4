"""Models that draw random numbers while they run: no two runs are equal, so nothing can be proven of an engine."""

from __future__ import annotations

import torch
from torch import fx

from moec.errors import MoecError

_DRAWS = {
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "bernoulli_",
    "multinomial", "normal", "normal_", "uniform_", "exponential_", "rrelu_with_noise", "native_dropout",
}  # fmt: skip


def refuse_random(graph: fx.Graph) -> None:
    """Raise M206 for an operator that draws random numbers. `dropout` of a model in eval mode draws none."""
    for node in graph.nodes:
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        training = name == "dropout" and node.args[2:3] == (True,)
        if isinstance(node.target, torch._ops.OpOverload) and (name in _DRAWS or training):
            raise MoecError(
                "M206",
                f"the model draws random numbers when it runs ({node.target}), so that no two of its runs are equal",
                str(node.stack_trace or node.name).strip().splitlines()[-1].strip()[:200],
                "leave the noise out in eval mode: if self.training: …",
            )
