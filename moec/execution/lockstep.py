"""Run a program over many inputs side by side, operator by operator, and change what it computes on the way.

Methods that calibrate need, at each operator, what all inputs bring there once everything before it has been changed
already. `run_in_lockstep` gives that in one pass over the graph: it computes an operator for every input before it
begins the next one, so that each weight is read once however many inputs there are, and it holds only values that are
still needed. A `Lockstep` can stand between two operators, so that two programs run beside each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx

from moec.execution.streaming import StreamingInterpreter
from moec.program.moe_call import MoeCall
from moec.program.program import Program
from moec.program.signature import converted
from moec.weights.lazy import Weight

_CACHED_BLOCKS = 16  # of each weight, while the operator that reads it runs for all inputs


@dataclass
class OperatorCalls:
    """The calls of one operator, one for each input, before they are computed.

    Attributes:
        node: in the program that runs.
        inputs: for each input, the operator's arguments. Weights among them are lazy, and the same object in all.
        named: for each input, its keyword arguments.
    """

    node: fx.Node
    inputs: list[tuple[Any, ...]]
    named: list[dict[str, Any]]
    _runs: Sequence[_OneInput] = field(default=(), repr=False)

    def values(self, place: int) -> list[Any]:
        """An argument's value for every input; None where it was not given."""
        return [args[place] if len(args) > place else None for args in self.inputs]

    def earlier(self, node: fx.Node) -> list[Any]:
        """For every input the value of a node that was computed before and is read by this operator or a later one."""
        return [run.env[run.here[node.name]] for run in self._runs]

    def moe_calls(self) -> list[MoeCall]:
        """For each input, the arguments of a mixture-of-experts operator by name."""
        return [MoeCall.evaluated(self.node.target, *given) for given in zip(self.inputs, self.named, strict=True)]

    def replace(self, place: int, value: Any) -> None:
        """Compute with another argument, for all inputs the same: a `Weight`, or a tensor."""
        self.replace_each(place, [value] * len(self.inputs))

    def replace_each(self, place: int, values: list[Any]) -> None:
        """Compute with other arguments, one for every input."""
        self.inputs = [
            (*args[:place], value, *args[place + 1 :]) for args, value in zip(self.inputs, values, strict=True)
        ]


Visit = Callable[[OperatorCalls], None]


def run_in_lockstep(
    program: Program, inputs: Iterable[Mapping[str, Tensor]], visit: Visit, until: fx.Node | None = None
) -> list[tuple[Any, ...]]:
    """Compute a program for all inputs at once.

    Args:
        program: its graph is not changed; what `visit` replaces holds for this run.
        inputs: named tensors, see `Program.inputs`.
        visit: is shown every operator before it is computed, in graph order.
        until: the last operator that `visit` is shown; neither it nor what comes after it is computed.

    Returns:
        The outputs for each input, in the order of `program.outputs`; nothing when `until` was given.
    """
    run = Lockstep(program, inputs)
    with torch.inference_mode():
        for calls in run.operators():
            visit(calls)
            if calls.node is until:
                return []
    return run.outputs()


class Lockstep:
    """A program that runs for several inputs side by side.

    Args:
        program: its graph is not changed. inputs: named tensors, see `Program.inputs`.
    """

    def __init__(self, program: Program, inputs: Iterable[Mapping[str, Tensor]]) -> None:
        self._runs = [
            _OneInput(program, [converted(program.inputs, sample)[i.name] for i in program.inputs]) for sample in inputs
        ]
        self._nodes = program.graph.nodes
        self._operators = self._run()

    def operators(self) -> Iterator[OperatorCalls]:
        """Every operator that was not reached yet, before it is computed: that happens when the next one is asked
        for."""
        return self._operators

    def reach(self, node: fx.Node) -> OperatorCalls:
        """Compute what stands before an operator that was not reached yet; the operator itself is not computed."""
        return next(calls for calls in self._operators if calls.node is node)

    def outputs(self) -> list[tuple[Any, ...]]:
        """For each input, once every operator was computed, in the order of `program.outputs`."""
        return [run.outputs() for run in self._runs]

    def _run(self) -> Iterator[OperatorCalls]:
        for node in self._nodes:
            if node.op == "call_function":
                calls = _calls(node, self._runs)
                yield calls
                _compute(calls, self._runs)
            elif node.op != "output":
                _read(node, self._runs)


class _OneInput(StreamingInterpreter):
    """One input's values so far."""

    def __init__(self, program: Program, values: list[Tensor]) -> None:
        super().__init__(program)
        self.args_iter = iter(values)
        self.here = {node.name: node for node in self.graph.nodes}

    def arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.fetch_args_kwargs_from_env(self.here[node.name])

    def keep(self, node: fx.Node, value: Any) -> None:
        own = self.here[node.name]
        self.env[own] = value
        for done in self.user_to_last_uses.get(own, []):
            self.env.pop(done, None)

    def outputs(self) -> tuple[Any, ...]:
        node = next(reversed(self.graph.nodes))
        return tuple(v.load() if isinstance(v, Weight) else v for v in self.fetch_args_kwargs_from_env(node)[0][0])


# each in a mode of its own: what stands between two operators of a `Lockstep` is the caller's
@torch.inference_mode()
def _calls(node: fx.Node, runs: list[_OneInput]) -> OperatorCalls:
    given = [run.arguments(node) for run in runs]
    return OperatorCalls(node, [args for args, _ in given], [named for _, named in given], runs)


@torch.inference_mode()
def _compute(calls: OperatorCalls, runs: list[_OneInput]) -> None:
    cached: dict[int, Weight] = {}
    for run, args, named in zip(runs, calls.inputs, calls.named, strict=True):
        lent = tuple(cached.setdefault(id(a), with_block_cache(a)) if isinstance(a, Weight) else a for a in args)
        run.keep(calls.node, run.call_function(run.here[calls.node.name].target, lent, named))


@torch.inference_mode()
def _read(node: fx.Node, runs: list[_OneInput]) -> None:
    """An input or a weight."""
    for run in runs:
        run.keep(node, run.run_node(run.here[node.name]))


def joined(values: Sequence[Tensor], every: int = 1) -> Tensor:
    """Rows of several inputs' values `[…, H]` below each other, `[T, H]`; of all of them the first, and every one that
    is so many behind."""
    parts, start = list[Tensor](), 0
    for value in values:
        rows = value.reshape(-1, value.shape[-1])
        parts.append(rows[start::every])
        start = (start - len(rows)) % every
    return torch.cat(parts)


def joined_parts(values: Sequence[Tensor], parts: Sequence[Sequence[object]]) -> list[Tensor]:
    """The same of each part of the inputs, which stand one behind the other."""
    left = iter(values)
    return [joined([next(left) for _ in part]) for part in parts]


def with_block_cache(weight: Weight) -> Weight:
    """The same weight, which remembers the blocks that were read last instead of reading them anew."""
    return replace(weight, read=lru_cache(maxsize=_CACHED_BLOCKS)(weight.read), member=None)
