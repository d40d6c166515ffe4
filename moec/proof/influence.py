"""What each matrix of a program adds to its outputs on given inputs, and whether a comparison would see it spoiled.

An expert that no token reaches leaves no trace: any numbers may stand in it. Nor does one that counts for a
billionth of a token. So a matrix is proven only by inputs on which a comparison at the engine's tolerance would notice
it with its sign changed. One backward pass answers for nearly all matrices at once; those that it leaves open are
negated one by one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx

from moec.program.decoder_signature import without_padding
from moec.program.program import CPU, Program, place
from moec.program.signature import Sample, converted
from moec.recognition.hand_written_groups import Place
from moec.recognition.matrices import Matrix, constant_nodes

_HALVES = (torch.float16, torch.bfloat16)


class Influence:
    """Runs a program in float32 with its weights in memory, and tells what hangs on which matrix.

    Args:
        program: what an engine is built from.
        deviation: the max |d|/std that a comparison allows.
    """

    def __init__(self, program: Program, deviation: float) -> None:
        self._program, self._deviation = program, deviation
        self._graph = place(deepcopy(program.graph), CPU)
        self._constant = {node.name for node in constant_nodes(program)}

    def effects(self, sample: Sample, matrices: Collection[Matrix], filled: bool = False) -> dict[Place, float]:
        """How far outputs change, to first order, when a matrix changes by about its own size.

        Args:
            sample: inputs.
            matrices: those that are asked about.
            filled: put numbers where a weight is all zeros: what stands behind one has no effect of its own.

        Returns:
            Of each matrix of each stack, the root of the sum of `(change / std(output))²` over everything that is
            compared, divided by the least that a comparison is sure to notice: from 1 on it would. NaN where an
            operator has no derivative there.
        """
        run = _Run(self._program, self._graph, self._constant, {m.node.name: m for m in matrices}, filled=filled)
        with torch.enable_grad():
            outputs = run.outputs(sample)
            loss, count = _noise(self._program, outputs, sample)
            try:
                loss.backward()  # type: ignore[no-untyped-call, union-attr]
            except (RuntimeError, AttributeError):  # an operator, or all outputs, without a derivative
                return dict.fromkeys(run.norms, math.nan)
        least = self._deviation * math.sqrt(count)
        return {place: value / least for place, value in run.norms.items()}

    def seen(self, sample: Sample, place: Place) -> bool:
        """Whether outputs change by more than the tolerance when one matrix is negated (one of zeros: filled)."""
        spoiled = _Run(self._program, self._graph, self._constant, {place.matrix.node.name: place.matrix}, place)
        plain = _Run(self._program, self._graph, self._constant, {})
        with torch.inference_mode():
            pairs = [
                tuple(without_padding(value, sample, name, self._program.inputs) for value in (a, b))
                for name, a, b in zip(
                    self._program.outputs, plain.outputs(sample), spoiled.outputs(sample), strict=True
                )
            ]
        return any(_differ(want, got, self._deviation) for want, got in pairs)

    def is_zero(self, place: Place) -> bool:
        """Whether a matrix holds nothing but zeros."""
        node = next(n for n in self._graph.nodes if n.name == place.matrix.node.name)
        value = _Run(self._program, self._graph, self._constant, {}).constant_value(node)
        return not bool((value if place.part is None else value[place.part]).any())


def _differ(want: Tensor, got: Tensor, deviation: float) -> bool:
    if not want.is_floating_point():
        return not torch.equal(want, got)
    spread = float(want.double().std(correction=0)) if want.numel() else 0.0
    change = float((got.double() - want.double()).abs().max()) if want.numel() else 0.0
    return not change <= deviation * spread


def _noise(program: Program, outputs: Collection[Tensor], sample: Sample) -> tuple[Tensor | None, int]:
    """Everything that is compared, weighed at random and measured in its spread; and how many numbers that is."""
    generator, loss, count = torch.Generator().manual_seed(0), None, 0
    for name, output in zip(program.outputs, outputs, strict=True):
        value = without_padding(output, sample, name, program.inputs) if output.requires_grad else output.new_zeros(0)
        if value.numel():
            spread = float(value.detach().std(correction=0)) or 1.0
            term = (value * torch.randn(value.shape, generator=generator)).sum() / spread
            loss, count = term if loss is None else loss + term, count + value.numel()
    return loss, count


class _Run(fx.Interpreter):
    """One run in float32. `watched`: matrices by node name, whose gradients' sizes go into `norms`. `negated`: one
    that is spoiled."""

    def __init__(
        self, program: Program, graph: fx.Graph, constant: set[str], watched: Mapping[str, Matrix],
        negated: Place | None = None, filled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(program.graph_module, garbage_collect_values=True, graph=graph)
        self._program, self._constant, self._watched = program, constant, watched
        self._negated, self._filled = negated, filled
        self.norms: dict[Place, float] = {}

    def outputs(self, sample: Sample) -> tuple[Tensor, ...]:
        given = converted(self._program.inputs, sample)
        values: tuple[Tensor, ...] = self.run(
            *(_exact(given[i.name]) for i in self._program.inputs), enable_io_processing=False
        )
        return values

    def constant_value(self, node: fx.Node) -> Tensor:
        """What a node that hangs on weights alone yields."""
        for source in node.all_input_nodes:
            self.env[source] = self.constant_value(source)
        value: Tensor = super().run_node(node)
        return value

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self._constant:
            return super().run_node(n)
        with torch.no_grad():
            value = super().run_node(n)
        matrix = self._watched.get(n.name)
        if matrix is None:
            return value
        return self._leaf(matrix, value) if self._negated is None else _spoiled(value, self._negated.part)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = self._program.weights[target].load()
        if self._filled and value.is_floating_point() and not value.any():
            value = 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        return _exact(value)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = fx.node.map_aggregate((args, kwargs), _wide)
        return super().call_function(target, args, kwargs)

    def _leaf(self, matrix: Matrix, value: Tensor) -> Tensor:
        leaf = value.detach().clone() if value.is_inference() else value.detach()
        hooked: Any = leaf.requires_grad_()
        hooked.register_post_accumulate_grad_hook(lambda tensor: self._record(matrix, tensor))
        for k in range(len(matrix.names)):  # no gradient at all: nothing that is compared hangs on it
            self.norms[Place(matrix, k if matrix.parts else None)] = 0.0
        return leaf

    def _record(self, matrix: Matrix, leaf: Tensor) -> None:
        if leaf.grad is None:  # reached only through operators without a derivative there, such as attention's mask
            self.norms |= {Place(matrix, k if matrix.parts else None): math.nan for k in range(len(matrix.names))}
            return
        size = float(leaf.detach().double().square().mean().sqrt()) or leaf.shape[-1] ** -0.5
        rows = leaf.grad.flatten(1) if matrix.parts else leaf.grad.reshape(1, -1)
        for k, norm in enumerate(rows.norm(dim=1).tolist()):
            self.norms[Place(matrix, k if matrix.parts else None)] = size * norm
        leaf.grad = None


def _exact(value: Tensor) -> Tensor:
    return value.float() if value.dtype in _HALVES else value


def _wide(argument: Any) -> Any:
    return torch.float32 if isinstance(argument, torch.dtype) and argument in _HALVES else argument


def _spoiled(value: Tensor, part: int | None) -> Tensor:
    value = value.clone()
    chosen = value if part is None else value[part]
    size = float(value.double().square().mean().sqrt()) or 0.1
    noise = size * torch.randn(chosen.shape, generator=torch.Generator().manual_seed(0))
    chosen.copy_(-chosen if chosen.any() else noise)
    return value
