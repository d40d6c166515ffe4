"""Engines that take only some sizes, or are wrong at some."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from moec.execution.engine import EagerEngine
from moec.program.decoder_signature import IDS, LOGITS, MASK
from moec.program.program import Program


class Picky(EagerEngine):
    """Refuses what a specialised export would refuse: some length."""

    def __init__(self, program: Program, length: int) -> None:
        super().__init__(program)
        self.name, self._length = "picky", length

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if inputs["input_ids"].shape[1] == self._length:
            raise RuntimeError("\nInvalid dimension\nmore lines")
        return super().run(inputs)


class Bounded(Picky):
    """Made for a few tokens and texts, and says so."""

    def __init__(self, program: Program, says_so: bool = True) -> None:
        super().__init__(program, 0)
        self._says_so = says_so

    def holds(self, sizes: Mapping[str, int]) -> bool:
        return not self._says_so or (sizes["batch"] <= 4 and sizes["sequence"] <= 10)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        batch, length = inputs["input_ids"].shape
        if batch > 4 or length > 10:
            raise RuntimeError("outside of the profile")
        return super().run(inputs)


class WrongAt(EagerEngine):
    """A decoder that says something else in some calls: `wrong` gets their texts, new tokens, and tokens before."""

    def __init__(self, program: Program, wrong: Callable[[int, int, int], bool]) -> None:
        super().__init__(program)
        self.name, self._wrong = "wrong at", wrong

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        (batch, new), whole = inputs[IDS].shape, inputs[MASK].shape[1]
        outputs = super().run(inputs)
        return {**outputs, LOGITS: outputs[LOGITS] * (0.9 if self._wrong(batch, new, whole - new) else 1.0)}
