"""A pass is held to its contract: the program before it and after it, on samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.streaming import StreamingEngine
from moec.pipeline.passes import Pass
from moec.pipeline.pipeline import Hook
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.program.signature import Sample
from moec.proof.compare import Comparison, Tolerance, compare
from moec.proof.decided_tokens import LEAST, NOISE, is_causal, is_half, look


class VerifyHook(Hook):
    """Holds every pass to its contract, by running the program before and after it on samples.

    An exact pass must agree with the program before it, and so, step by step, with the captured one, to `tolerance`.
    Approximate passes may deviate from the captured program by `budget`, all of them together; its unit is
    `Tolerance`'s, too; without one a text judges the engine, and outputs only have to be
    numbers. Weights are read one at a time, so this takes time rather than memory. In half precision
    (`precision`) an exact pass may move tokens to other experts whose choice hangs on rounding: those are left out
    where others differ, and where hardly any other is left, the engine's proof decides. `comparisons` holds the figures
    of each pass. Raises M102 on a broken contract.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tolerance: Tolerance,
        budget: Tolerance | None,
        precision: torch.dtype | None = None,
    ) -> None:
        self._samples, self._tolerance, self._budget, self._precision = samples, tolerance, budget, precision
        self._captured: Engine | None = None
        self._previous: Engine | None = None
        self.comparisons: list[tuple[str, Comparison]] = []

    def before(self, step: int, item: Pass, program: Program) -> None:
        self._previous = StreamingEngine(program.clone())
        self._captured = self._captured or self._previous

    def after(self, step: int, item: Pass, program: Program, rewrites: int, seconds: float) -> None:
        assert self._previous is not None and self._captured is not None
        exact = item.contract_of() == "exact"
        reference, allowed = (self._previous, self._tolerance) if exact else (self._captured, self._budget)
        result = compare(reference, StreamingEngine(program), self._samples, allowed)
        if not result.ok and exact and is_half(self._precision) and moe_nodes(program):
            causal, noise = is_causal(program, self._samples[0]), NOISE[self._precision]
            tokens = [look(program, sample, noise, causal)[0] for sample in self._samples]
            if sum(t.count for t in tokens) < LEAST * sum(t.total for t in tokens):
                return
            result = compare(reference, StreamingEngine(program), self._samples, allowed, tokens)
        self.comparisons.append((str(item), result))
        if not result.ok:
            worst, kind = result.worst, "an exact" if exact else "the error budget of an approximate"
            figures = worst.problem or f"max |d|/std {worst.deviation:.2g}, {result.allowed}"
            fix = (
                "report this with `moec compile --dump DIR`"
                if exact
                else "allow more with --tolerance, or make the pass less aggressive"
            )
            raise MoecError(
                "M102", f"{item.name} broke the contract of {kind} pass in {worst.name!r}: {figures}", str(item), fix
            )
