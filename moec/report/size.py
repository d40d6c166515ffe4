"""How large a model is before and after: parameters, those that one token uses, and bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import fx

from moec.program.dialect_call import DEQUANTIZE, DEQUANTIZE_FLOAT
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import Program
from moec.recognition.hand_written import find_hand_written


@dataclass(frozen=True)
class Sizes:
    """Parameters and bytes, before and after.

    Attributes:
        parameters, stored_bytes: of the model as it came, and of its files.
        parameters_after: of the program that the engine is made from; a quantized weight counts as the numbers that it
            stands for. active_after: those of them that one token uses; None where a mixture runs as it is written, in
            plain operators.
        blocks: how many mixtures of experts it has. experts, top_k: which numbers of them occur.
    """

    parameters: int
    stored_bytes: int
    parameters_after: int
    active_after: int | None
    blocks: int = 0
    experts: tuple[int, ...] = ()
    top_k: tuple[int, ...] = ()


def sizes_of(captured: Program, program: Program, stored_bytes: int) -> Sizes:
    """Count a captured program and what it was made into. Loads nothing."""
    after = parameters(program)
    calls = [MoeCall(node) for node in moe_nodes(program)]
    by_hand = not calls and bool(find_hand_written(program))
    active = None if by_hand else after - sum(map(idle, calls))
    counts = [c.experts for c in calls], [c.experts_a_token for c in calls]
    experts, chosen = (tuple(sorted(set(found))) for found in counts)
    return Sizes(parameters(captured), stored_bytes, after, active, len(calls), experts, chosen)


@dataclass(frozen=True)
class Held:
    """A tensor of floating-point numbers that a program holds.

    Attributes:
        shape: of what a packed one stands for. readers: the nodes that take it.
    """

    shape: tuple[int, ...]
    readers: frozenset[fx.Node]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def held(program: Program) -> list[Held]:
    """A program's weights, shared ones once; packed ones as what they stand for."""
    packed, found = program.nodes(DEQUANTIZE, DEQUANTIZE_FLOAT), dict[int, tuple[tuple[int, ...], set[fx.Node]]]()
    inside = {a.target for node in packed for a in node.all_input_nodes if a.op == "get_attr"}
    for node in packed:
        found.setdefault(_key(program, node), (tuple(node.meta["val"].shape), set()))[1].update(node.users)
    readers: dict[object, set[fx.Node]] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(node.target, set()).update(node.users)
    for name, weight in program.weights.items():
        if name not in inside and weight.dtype.is_floating_point:
            found.setdefault(id(weight), (tuple(weight.shape), set()))[1].update(readers.get(name, ()))
    return [Held(shape, frozenset(nodes)) for shape, nodes in found.values()]


def parameters(program: Program) -> int:
    """Floating-point numbers of a program's weights, shared ones once; of packed weights what they stand for."""
    return sum(tensor.count for tensor in held(program))


def _key(program: Program, node: fx.Node) -> int:
    weight = program.weight_of(node.args[0])
    return id(weight) if weight is not None else id(node)


def idle(call: MoeCall) -> int:
    """Numbers of the experts that a token does not go to, their biases among them."""
    each = sum(math.prod(_shape(t)[1:]) for t in call.expert_tensors().values() if t is not None)
    return each * max(0, call.experts - call.experts_a_token)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple((value.meta["val"] if isinstance(value, fx.Node) else value).shape)
