"""The experts of one block, put on their grids expert by expert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from moec.execution.lockstep import OperatorCalls
from moec.program.moe_call import matrix_positions
from moec.quantization.fitting import Block, Expert, Fitted, fit_experts, moments
from moec.quantization.grid import Grid
from moec.quantization.hessians import Arrivals
from moec.quantization.packed_result import PARTS, PackedResult
from moec.quantization.sequential_kept import KeptRun
from moec.recognition.weight_roles import Use
from moec.weights.lazy import Weight
from moec.workers.working import pool

Pair = tuple[Fitted | None, Fitted | None]


@dataclass
class ExpertStep:
    """What is to be done of a block. Both matrices of an expert read the same inputs, the second what the first makes
    of them, so they are one piece; an expert that an earlier run kept is not done again.

    Attributes:
        calls: of the block's operator.
        todo: by the place of a stack of matrices: who reads it, its grid, and what is to be filled.
        kept: where the run keeps what it makes, or None.
    """

    calls: OperatorCalls
    todo: Mapping[int, tuple[Use, Grid, PackedResult]]
    kept: KeptRun | None

    def run(self) -> list[tuple[str, int]]:
        """Fill everything; returns the matrices that were rounded to nearest, by their weight's name and expert."""
        call, rounded = self.calls.moe_calls()[0], dict[int, list[tuple[str, int]]]()
        count = call.w_in.shape[0]
        for e in range(count):
            pair = _recalled(self.kept, self.calls.node.name, e)
            if pair is not None and self._put(e, pair):
                rounded[e] = self._rounded(e, pair)
        rest = [e for e in range(count) if e not in rounded]
        for e, pair in zip(rest, self._fitted(call, rest), strict=True):
            filled = self._put(e, pair)
            assert filled
            rounded[e] = self._rounded(e, pair)
            if self.kept:
                _keep(self.kept, self.calls.node.name, e, pair)
        return [matrix for e in range(count) for matrix in rounded[e]]

    def _fitted(self, call: Any, rest: list[int]) -> Any:
        if not rest:
            return ()
        arrivals = Arrivals.of(self.calls)
        everything = moments(pool(), (c.x for c in self.calls.moe_calls()))
        block = Block(replace(arrivals, everything=everything), call.activation)
        sizes = call.w_in.shape[2], call.w_in.shape[1], call.w_out.shape[2]
        return fit_experts(pool(), block, (self._expert(call, e) for e in rest), sizes)

    def _expert(self, call: Any, e: int) -> Expert:
        one, two = (found and (found[0], found[1].of(e)) for found in self._both())
        return Expert(
            e,
            _of_expert(call.w_in, e),
            _of_expert(two[0].weight, e) if two else None,
            None if call.b_in is None else _of_expert(call.b_in, e).float(),
            (one[1] if one else None, two[1] if two else None),
        )

    def _both(self) -> list[tuple[Use, Grid, PackedResult] | None]:
        return [self.todo.get(place) for place in matrix_positions(self.calls.node.target)]

    def _put(self, e: int, pair: Pair) -> bool:
        """Whether all that is to be done was there, and fitted."""
        both = zip(self._both(), pair, strict=True)
        return all(found is None or (made is not None and found[2].put(made.codes, e)) for found, made in both)

    def _rounded(self, e: int, pair: Pair) -> list[tuple[str, int]]:
        both = zip(self._both(), pair, strict=True)
        return [(found[0].name, e) for found, made in both if found is not None and made is not None and made.rounded]


def _of_expert(stacked: Any, e: int) -> Tensor:
    value: Tensor = stacked.read(e, e + 1)[0] if isinstance(stacked, Weight) else stacked[e]
    return value


def _keep(kept: KeptRun, step: str, e: int, pair: Pair) -> None:
    made = {
        at: {name: part for name, part in zip(PARTS, one.codes, strict=True) if part is not None}
        for at, one in enumerate(pair)
        if one is not None
    }
    kept.keep_piece(step, e, made, [[at] for at, one in enumerate(pair) if one is not None and one.rounded])


def _recalled(kept: KeptRun | None, step: str, e: int) -> Pair | None:
    found = kept.recall_piece(step, e) if kept else None
    if found is None:
        return None
    made, rounded = found
    one, two = (
        Fitted((made[at]["packed"], made[at]["scale"], made[at].get("zero")), [at] in rounded) if at in made else None
        for at in (0, 1)
    )
    return one, two
