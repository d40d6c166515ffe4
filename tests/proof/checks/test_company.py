"""What a pass spoils only where a text stands among others, or beside padding, is found within any budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from moec.execution.engine import EagerEngine, Engine
from moec.pipeline.pipeline import Pipeline
from moec.program.program import AppliedPass, Program
from moec.proof.checks.company import TEXTS, Company
from moec.proof.subject import Subject
from moec.proof.trial import Trial
from tests.proof.bounded import Bounded
from tests.zoo import captured, source

Change = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]


class Spoiled(EagerEngine):
    """A program whose logits are changed, given what it was given."""

    def __init__(self, program: Program, change: Change) -> None:
        super().__init__(program)
        self._change = change

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = dict(inputs)
        return self._change(super().run(given), given)


def mask_ignored(_said: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    ones = torch.ones_like(given["attention_mask"])
    return EagerEngine(captured("llama")).run({**given, "attention_mask": ones})


def ninth_halved(said: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    late = torch.arange(len(given["input_ids"]))[:, None, None] >= 8
    return {**said, "logits": torch.where(late, said["logits"] * 0.5, said["logits"])}


def all_halved(said: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**said, "logits": said["logits"] * (0.5 if len(given["input_ids"]) > 1 else 1)}


def louder_by_padding(said: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    more = 1 + 0.01 * (given["attention_mask"] == 0).sum(1)[:, None, None]
    return {**said, "logits": said["logits"] * more}


def right(said: dict[str, Tensor], _given: dict[str, Tensor]) -> dict[str, Tensor]:
    return said


def company(engine: Engine | None = None, program: Program | None = None, **more: Any) -> Company | None:
    program = program or captured("llama")
    if not more.pop("exact", False):
        program.history.append(AppliedPass("changes", 1, "approximate"))
    return Company.measure(Trial(Subject(source("llama"), program, program, **more), engine or EagerEngine(program)))


def test_a_right_one_says_the_same() -> None:
    program, _ = Pipeline.parse("quantize(bits=4, group=16)").run(captured("llama"))
    for found in (company(), company(program=program)):
        assert found is not None and found.ok and found.texts == TEXTS and not found.own


@pytest.mark.parametrize("change", [mask_ignored, ninth_halved, louder_by_padding])
def test_a_wrong_one_is_found(change: Change) -> None:
    found = company(Spoiled(captured("llama"), change))
    assert found is not None and not found.ok
    error = found.error()
    assert error is not None and error.code == "M101" and "of 9, 5 tokens of padding before it" in error.where


@pytest.mark.parametrize("change", [ninth_halved, right])
def test_what_the_model_does_itself_is_no_fault(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one with a capacity does."""
    spoiled, model = Spoiled(captured("llama"), ninth_halved), Spoiled(captured("llama"), change)
    monkeypatch.setattr(Subject, "open_reference", lambda _subject: model)
    found = company(spoiled)
    assert found is not None and found.ok is (change is ninth_halved) and found.own == int(found.ok)


def test_where_it_is_not_asked_the_check_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert company(exact=True) is None, "outputs are compared with the model's own"
    half, narrow = company(program=captured("mixtral"), precision=torch.float16), company(Bounded(captured("llama")))
    skips, _ = Pipeline.parse("find-moe, skip-experts(alpha=0.5)").run(captured("mixtral"))
    spoiled = Spoiled(captured("llama"), all_halved)
    monkeypatch.setattr(Subject, "open_reference", lambda _subject: spoiled)
    itself, cut = company(spoiled), company(program=skips, exact=True)
    words = {"half precision": half, "9 texts": narrow, "untouched model": itself, "in a call": cut}
    for word, found in words.items():
        assert found is not None and found.ok and not found.texts and word in found.not_asked
        assert word in str(found) and word in found.note and [figure.ok for figure in found.figures()] == [None]
