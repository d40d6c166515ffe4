"""Check: after approximate passes, a language model says the same of a text alone and among others, padded or not.

Their budget is measured on whole texts in one call. What a pass does to padding alone, or to the ninth text of a call,
would show there in nothing; and in the comparison with the pass's own program it shows on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.decoder_signature import IDS, LOGITS, MASK, text_inputs
from moec.program.moe_call import moe_nodes
from moec.program.signature import Input, Sample
from moec.proof.cache_consistency import apart
from moec.proof.checks.check import Check, Figure
from moec.proof.chosen_keys import key_choices
from moec.proof.decided_tokens import is_half
from moec.proof.digits import at_most
from moec.proof.own_text import is_language_model
from moec.proof.subject import Subject
from moec.proof.trial import Trial
from moec.shown import figure_of

TEXTS, LENGTH, PADDING = 9, 16, (0, 3, 5)  # tokens of padding, in turns; before and behind a text, in turns
SEED = 11  # added to the proof's


@dataclass(frozen=True)
class Company(Check):
    """Logits of texts that come in one call, beside those of each alone.

    Attributes:
        texts: that were compared.
        own: texts of which the untouched model itself says something else among others; they are not among these.
        deviation: max |d|/std of the worst. tolerance: what it may be. worst: which text that is.
        not_asked: why no text was compared; empty where one was.
    """

    texts: int
    own: int
    deviation: float
    tolerance: float
    worst: str = ""
    not_asked: str = ""

    name: ClassVar[str] = "company"
    title: ClassVar[str] = "A text alone and among others"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        """Of language models after approximate passes. Where tokens of several texts have to do with each other, or
        rounding may move tokens to other experts or keys, it is not asked, and the check says so."""
        subject = trial.subject
        if not subject.program.approximate or not is_language_model(subject.program):
            return None
        allowed, why = subject.lowering_tolerance.deviation, _why_not(subject)
        if why:
            return cls(0, 0, 0.0, allowed, not_asked=why)
        texts = Texts.drawn(subject)
        inputs = subject.source.inputs
        if not all(trial.holds(sample) for sample in (texts.together(inputs), *texts.alone(inputs))):
            return cls(0, 0, 0.0, allowed, not_asked=f"the engine does not take {TEXTS} texts of {LENGTH} tokens")
        found = texts.deviations(trial.engine)
        own = list[float]()
        if any(not at_most(d, allowed) for d in found):  # the model itself may hang on it
            own = texts.deviations(trial.untouched)
        judged = {k: d for k, d in enumerate(found) if not own or at_most(own[k], allowed)}
        worst = max(judged, key=judged.__getitem__, default=None)
        if worst is None:
            return cls(0, len(found), 0.0, allowed, not_asked="the untouched model itself differs there in every text")
        return cls(len(judged), len(found) - len(judged), judged[worst], allowed, texts.named(worst))

    def error(self) -> MoecError | None:
        if at_most(self.deviation, self.tolerance):
            return None
        what = (
            f"passes change what the model says of a text among others: max |d|/std {self.deviation:.2g} from the same "
            f"text alone, {figure_of(self.tolerance)} allowed"
        )
        fix = "leave out the pass that does so; `moec compile --dump DIR` writes what each one makes"
        return MoecError("M101", what, self.worst, fix)

    @property
    def note(self) -> str:
        if self.not_asked:
            return f"Not asked: {self.not_asked}."
        own = f" Of {self.own} others the untouched model says something else there itself." if self.own else ""
        return f"{self.texts} texts in one call, some with padding, each beside itself alone.{own}"

    def figures(self) -> tuple[Figure, ...]:
        if self.not_asked:
            return (Figure("no text", {"compared": f"not asked: {self.not_asked}"}, None),)
        values = {"max|d|/std": f"{self.deviation:.2e}", "allowed": figure_of(self.tolerance)}
        return (Figure(self.worst, values, self.ok),)

    def __str__(self) -> str:
        if self.not_asked:
            return f"not asked: {self.not_asked}"
        return f"max |d|/std {self.deviation:.2g} of {figure_of(self.tolerance)} allowed, in {self.texts} texts"


def _why_not(subject: Subject) -> str:
    """Why a text may say something else among others; empty where it may not."""
    program = subject.program
    if program.by_call:
        return "passes make results depend on what is in a call"
    if is_half(subject.precision) and moe_nodes(program):
        return "in half precision tokens may move to other experts"
    if key_choices(program):
        return "tokens may choose other keys"
    shape = next(spec.shape for spec in subject.source.inputs if spec.name == IDS)
    return "" if all(isinstance(size, str) for size in shape) else "the number of texts or of tokens is fixed"


@dataclass(frozen=True)
class Texts:
    """Texts of one call. ids: int64 `[texts, length]`. padding: of each, negative where it stands behind the text."""

    ids: Tensor
    padding: tuple[int, ...]

    @classmethod
    def drawn(cls, subject: Subject) -> Self:
        """Padded where the model takes a mask."""
        source = subject.source
        domain, masked = source.domains.get(IDS), any(i.name == MASK for i in source.inputs)
        generator = torch.Generator().manual_seed(subject.seed + SEED)
        ids = torch.randint(0, domain.high if domain else 2, (TEXTS, LENGTH), generator=generator)
        counts = (PADDING[k % len(PADDING)] * (1 if k % 2 == 0 else -1) for k in range(TEXTS))
        return cls(ids, tuple(count if masked else 0 for count in counts))

    def together(self, inputs: Sequence[Input]) -> Sample:
        """All in one call of an engine with these inputs."""
        fed, mask = torch.zeros_like(self.ids), torch.zeros_like(self.ids)
        for k, tokens in enumerate(self._tokens()):
            fed[k, self._place(k)], mask[k, self._place(k)] = tokens, 1
        given = text_inputs(inputs, fed)
        return given | ({MASK: mask.to(given[MASK].dtype)} if MASK in given else {})

    def alone(self, inputs: Sequence[Input]) -> list[Sample]:
        """Each in a call of its own."""
        return [text_inputs(inputs, tokens[None]) for tokens in self._tokens()]

    def deviations(self, engine: Engine) -> list[float]:
        """How far what is said of each text among others is from what is said of it alone: max |d|/std."""
        both = engine(**self.together(engine.inputs))[LOGITS].double()
        singly = [engine(**sample)[LOGITS][0].double() for sample in self.alone(engine.inputs)]
        return [apart(both[k, self._place(k)], want) for k, want in enumerate(singly)]

    def named(self, k: int) -> str:
        """A text, in words."""
        count = self.padding[k]
        where = f", {abs(count)} tokens of padding {'before' if count > 0 else 'behind'} it" if count else ""
        return f"text {k + 1} of {len(self.ids)}{where}"

    def _tokens(self) -> list[Tensor]:
        length = self.ids.shape[1]
        return [row[: length - abs(count)] for row, count in zip(self.ids, self.padding, strict=True)]

    def _place(self, k: int) -> slice:
        count = self.padding[k]
        return slice(count, None) if count >= 0 else slice(None, count)
