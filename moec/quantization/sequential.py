"""Quantization in the order of computation: each weight is fitted to what the weights before it, already quantized,
bring to it."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.program.moe_call import EXPERTS, MOE
from moec.program.program import Program
from moec.quantization.expert_step import ExpertStep
from moec.quantization.fitting import fit_matrix, moments
from moec.quantization.gptq import inverse_factor
from moec.quantization.grid import Grid
from moec.quantization.packed_result import PackedResult, tensors_of, unpacked
from moec.quantization.rounding import WORTH_KEEPING, PackedParts
from moec.quantization.sequential_kept import KeptRun, Made, Rounded, key_of_run
from moec.recognition.linear import without_views
from moec.recognition.weight_roles import Use
from moec.weights.remembered import fits
from moec.workers.working import pool

Key = tuple[str, str, Grid]
_STACKED = (EXPERTS, MOE, torch.ops.aten.linear.default, torch.ops.aten.embedding.default)  # take `[out, in]`


def key_of(use: Use, grid: Grid) -> Key:
    """Equal keys mean equal results: one weight on one grid."""
    assert use.weight is not None
    return use.name, use.weight.origin, grid


@dataclass(frozen=True)
class Matrix:
    """One matrix: a whole weight by its name, or that of one expert of a stack."""

    name: str
    expert: int | None = None

    def __str__(self) -> str:
        return self.name if self.expert is None else f"{self.name}[{self.expert}]"


@dataclass
class Sequential:
    """Quantizes weights while a program runs over many inputs, operator by operator.

    Attributes:
        program: is not changed.
        todo: what is to be put on which grid. Only `gptq` looks at the data; what other methods make is computed with
            all the same.
        label: of the data, for the results' origins: equal origins are to mean equal contents.
        made: the results by `key_of`; they are tensors in memory.
        rounded: matrices that no damping made fit for `gptq`, which were rounded to nearest.
    """

    program: Program
    todo: Sequence[tuple[Use, Grid]]
    label: str
    made: dict[Key, PackedParts] = field(default_factory=dict)
    rounded: list[Matrix] = field(default_factory=list)
    _last: tuple[fx.Node | None, Any] = (None, None)

    def run(self, inputs: Iterable[Mapping[str, Tensor]]) -> None:
        """Run all inputs up to the last weight that needs data; results of other methods behind it are not made. What
        was made before, of the same program, numbers, grids and inputs, is taken from where it was kept."""
        if sum(math.prod(u.weight.shape) for u, _ in self.todo if u.weight is not None) < WORTH_KEEPING:
            self._run(inputs)
            return
        batches, results = list(inputs), {key_of(use, grid): (use, grid) for use, grid in self.todo}
        room = fits(t for u, g in results.values() if u.weight for t in PackedResult(u.weight, g).tensors().values())
        run = KeptRun(key_of_run(self.program, self.todo, batches), room)
        found = run.whole()
        if found is None or not self._take(*found):
            run.finish(self._run(batches, run))

    def _take(self, made: Made, rounded: Rounded) -> bool:
        """Put in place what an earlier run made; False, and nothing is taken, where any of it does not fit."""
        fitting: dict[Key, PackedParts] = {}
        for at, tensors in made.items():
            use, grid = self.todo[at]
            assert use.weight is not None
            result = PackedResult(use.weight, grid)
            if not result.fill(tensors):
                return False
            fitting[key_of(use, grid)] = result.packed(self.label)
        self.made |= fitting
        self.rounded += [Matrix(name, expert) for name, expert in rounded]
        return True

    def _tensors(self, new: Container[Key]) -> dict[int, dict[str, Tensor]]:
        """Each of these results once, by the place in `todo` of the first that asked for it."""
        found: dict[Key, int] = {}
        for at, (use, grid) in enumerate(self.todo):
            if key_of(use, grid) in new:
                found.setdefault(key_of(use, grid), at)
        return {at: tensors_of(self.made[key]) for key, at in found.items()}

    def _run(self, inputs: Iterable[Mapping[str, Tensor]], kept: KeptRun | None = None) -> int:
        """Returns the number of nodes that made something, or took it from `kept`."""
        uses: dict[fx.Node, list[tuple[Use, Grid]]] = {}
        for use, grid in self.todo:
            uses.setdefault(use.node, []).append((use, grid))
        last = [n for n in self.program.graph.nodes if any(g.method == "gptq" for _, g in uses.get(n, []))][-1]
        steps = list[str]()

        def visit(calls: OperatorCalls) -> None:
            name, own, before, rounded = calls.node.name, uses.get(calls.node, []), set(self.made), len(self.rounded)
            missing = any(key_of(*pair) not in self.made for pair in own)
            found = kept.recall(name) if kept and missing else None
            taken = found is not None and self._take(*found)
            self._visit(calls, own, kept)
            if kept and missing and not taken:
                more = [[m.name, m.expert] for m in self.rounded[rounded:]]
                kept.keep(name, self._tensors(self.made.keys() - before), more)
            steps.extend([name] if missing else [])

        # nothing from the last one on is computed, a whole vocabulary's logits least of all
        run_in_lockstep(self.program, inputs, visit, until=last)
        return len(steps)

    # ------------------------------------------------------------------ operators
    def _visit(self, calls: OperatorCalls, uses: list[tuple[Use, Grid]], kept: KeptRun | None) -> None:
        if calls.node.target in (EXPERTS, MOE) and uses:
            self._experts(calls, {u.place: (u, g) for u, g in uses}, kept)
        for use, grid in uses:
            key = key_of(use, grid)
            if key not in self.made:
                self._matrix(calls, use, grid)
            value = unpacked(self.made[key], grid)
            calls.replace(use.place, value if calls.node.target in _STACKED else value.load().t())

    def _matrix(self, calls: OperatorCalls, use: Use, grid: Grid) -> None:
        assert use.weight is not None
        found, own, shared = PackedResult(use.weight, grid), grid, None
        if grid.method == "gptq":
            shared = self._factor(calls)
            if shared is None:
                self.rounded.append(Matrix(use.name))
                own = replace(grid, method="rtn")
        filled = found.put(fit_matrix(pool(), use.weight.load(), shared, own))
        assert filled
        self.made[key_of(use, grid)] = found.packed(self.label)

    def _factor(self, calls: OperatorCalls) -> Any:
        """Of the moments of a linear layer's inputs, as `pool` shares it; None where nothing gives one. Those that
        share inputs, as queries, keys and values do, follow each other."""
        place = 1 if calls.node.target == torch.ops.aten.addmm.default else 0
        source = calls.node.args[place]
        assert isinstance(source, fx.Node)
        source = without_views(source)
        if self._last[0] is not source:
            found = inverse_factor(moments(pool(), calls.values(place)))  # one piece, so all threads of this process
            self._last = source, None if found is None else pool().share(found)
        return self._last[1]

    def _experts(self, calls: OperatorCalls, uses: dict[int, tuple[Use, Grid]], kept: KeptRun | None) -> None:
        missing = {
            place: (u, g, PackedResult(u.weight, g))
            for place, (u, g) in uses.items()
            if u.weight is not None and key_of(u, g) not in self.made
        }
        if missing:
            self.rounded += [Matrix(*matrix) for matrix in ExpertStep(calls, missing, kept).run()]
            self.made |= {key_of(u, g): found.packed(self.label) for u, g, found in missing.values()}
