"""Models that draw random numbers while they run: no two runs are equal, so nothing can be proven of an engine."""

from __future__ import annotations

import torch
from torch import fx

from moec.errors import MoecError
from moec.program.functional import is_in_place, root_of

_DRAWS = {
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "bernoulli_",
    "multinomial", "normal", "normal_", "uniform", "uniform_", "exponential", "exponential_", "native_dropout",
    "rrelu_with_noise",
}  # fmt: skip


def refuse_random(graph: fx.Graph) -> None:
    """Raise M206 where an output depends on random numbers, in a functionalized graph.

    `dropout` of a model in eval mode draws none. Nor does it count what a module that forward makes anew would start
    with, where weights take its place (BigBird's attention).
    """
    for node in _read(graph):
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        training = name == "dropout" and node.args[2:3] == (True,)
        if isinstance(node.target, torch._ops.OpOverload) and (name in _DRAWS or training):
            raise MoecError(
                "M206",
                f"the model draws random numbers when it runs ({node.target}), so that no two of its runs are equal",
                str(node.stack_trace or node.name).strip().splitlines()[-1].strip()[:200],
                "leave the noise out in eval mode: if self.training: …",
            )


def _read(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that an output depends on, and those that change a tensor which one reads, in the graph's order."""
    read: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in read or (is_in_place(node) and root_of(node) in read):
            read |= {node, *node.all_input_nodes}
    return [node for node in graph.nodes if node in read]
