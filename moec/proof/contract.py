"""A pass is held to its contract: the program before it and after it, on samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.streaming import StreamingEngine
from moec.pipeline.passes import Pass
from moec.pipeline.pipeline import Hook
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.program.signature import Sample
from moec.proof.budgets import OverBudget, budget_of
from moec.proof.compare import Comparison, Tolerance, compare
from moec.proof.decided_tokens import LEAST, NOISE, is_causal, is_half, look
from moec.proof.own_text import MILDER, OwnQuality, OwnText, judge, logits_of
from moec.weights.lazy import Weight

_KEPT_BYTES = 2**26  # of what programs answer, at most: the rest is computed again


class _Answers(StreamingEngine):
    """A program whose answers to the samples are kept, so that what a pass made need not run again as what the next one
    was given."""

    def __init__(self, program: Program, earlier: _Answers | None = None) -> None:
        super().__init__(program)
        self._state = program.digest(), dict(program.weights)
        self._answers: list[tuple[Mapping[str, Tensor], dict[str, Tensor]]] = []
        if earlier is not None and earlier._is_of(self._state):
            self._answers = earlier._answers

    def _is_of(self, state: tuple[str, dict[str, Weight]]) -> bool:
        """Whether a program in this state is as the one was of which this was made."""
        (digest, weights), (other, others) = self._state, state
        same = weights.keys() == others.keys() and all(weights[name] is weight for name, weight in others.items())
        return same and digest == other

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for given, answer in self._answers:
            if given.keys() == inputs.keys() and all(given[name] is value for name, value in inputs.items()):
                return answer
        answer = super().run(inputs)
        held = sum(t.nbytes for _, kept in self._answers for t in kept.values())
        if held + sum(t.nbytes for t in answer.values()) <= _KEPT_BYTES:
            self._answers.append((dict(inputs), answer))
        return answer


class VerifyHook(Hook):
    """Holds every pass to its contract, by running the program before and after it on samples.

    An exact pass must agree with the program before it, and so, step by step, with the captured one, to `tolerance`.
    Approximate passes may deviate from the captured program by a budget, all of them together. It is the proof's own:
    mean KL divergence and top-1 agreement on the model's own text (`moec.proof.own_text`), where `write` gives one;
    else `budget`, or where that is asked for `by_width`, the default of what the passes did so far, both in
    `Tolerance`'s units; without any of these a text judges the engine, and outputs only have to be numbers.
    Weights are read one at a time, so this takes time rather than memory. In half precision (`precision`) an exact pass
    may move tokens to other experts whose choice hangs on rounding: those are left out where others differ, and where
    hardly any other is left, the engine's proof decides. `comparisons` and `judged` hold the figures of each pass.
    Raises M102 on a broken contract.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tolerance: Tolerance,
        budget: Tolerance | None,
        precision: torch.dtype | None = None,
        write: Callable[[], OwnText] | None = None,
        max_kl: float | None = None,
        by_width: bool = False,
    ) -> None:
        self._samples, self._tolerance, self._budget, self._precision = samples, tolerance, budget, precision
        self._write, self._max_kl, self._by_width = write, max_kl, by_width
        self.text: OwnText | None = None  # the model's own, once it was needed
        self._said: Tensor | None = None  # by the captured program, on that text
        self._captured: Engine | None = None
        self._previous: _Answers | None = None
        self._made: _Answers | None = None  # by the pass before
        self.comparisons: list[tuple[str, Comparison]] = []
        self.judged: list[tuple[str, OwnQuality]] = []

    @property
    def samples(self) -> Sequence[Sample]:
        """The inputs that passes are held to, the smallest first."""
        return self._samples

    def before(self, step: int, item: Pass, program: Program) -> None:
        self._previous = _Answers(program.clone(), self._made)
        self._captured = self._captured or self._previous

    def after(self, step: int, item: Pass, program: Program, rewrites: int, seconds: float) -> None:
        if item.contract_of() == "new model":
            self._captured, self._said, self.text = None, None, None  # what follows is compared with it
        elif item.contract_of() == "exact":
            self._hold_exact(item, program)
        elif self._write is not None:
            self._judge(item, program)
        else:
            assert self._captured is not None
            budget = Tolerance.of_passes(program.history) if self._by_width else self._budget
            result = compare(self._captured, StreamingEngine(program), self._samples, budget)
            fix = "allow more with --tolerance, or make the pass less aggressive"
            self._take(item, result, "the error budget of an approximate", fix)

    def _hold_exact(self, item: Pass, program: Program) -> None:
        assert self._previous is not None
        self._made = _Answers(program)
        result = compare(self._previous, self._made, self._samples, self._tolerance)
        if not result.ok and is_half(self._precision) and moe_nodes(program):
            causal, noise = is_causal(program, self._samples[0]), NOISE[self._precision]
            tokens = [look(program, sample, noise, causal)[0] for sample in self._samples]
            if sum(t.count for t in tokens) < LEAST * sum(t.total for t in tokens):
                return
            result = compare(self._previous, self._made, self._samples, self._tolerance, tokens)
        self._take(item, result, "an exact", "report this with `moec compile --dump DIR`")

    def _take(self, item: Pass, result: Comparison, kind: str, fix: str) -> None:
        self.comparisons.append((str(item), result))
        if not result.ok:
            worst = result.worst
            figures = worst.problem or result.figures(worst)
            what = f"{item.name} broke the contract of {kind} pass in {worst.name!r}: {figures}"
            error = MoecError if item.contract_of() == "exact" else OverBudget
            raise error("M102", what, str(item), fix)

    def _judge(self, item: Pass, program: Program) -> None:
        assert self._captured is not None and self._write is not None
        self.text = self.text or self._write()
        self._said = logits_of(self._captured, self.text.ids) if self._said is None else self._said
        budget = budget_of(program.history, self._max_kl)
        found = judge(self._captured, StreamingEngine(program), self.text, budget, self._said)
        self.judged.append((str(item), found))
        if not found.ok:
            what = f"{item.name} broke the error budget of an approximate pass: {'; '.join(found.problems)}"
            raise OverBudget("M102", what, str(item), MILDER)
