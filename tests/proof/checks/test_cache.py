"""A decoder's cache is part of every proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import moec
from moec import api
from moec.execution.engine import EagerEngine
from moec.execution.generation import TensorContinuation
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.pipeline import Pipeline
from moec.program.program import AppliedPass, Program
from moec.proof.cache_consistency import DOUBLING, IN_TURNS, ONE_BY_ONE, SHORT, SINGLY, WAYS, WRITTEN, text_past
from moec.proof.checks.cache import CacheConsistency
from moec.proof.subject import Subject
from moec.proof.trial import Trial
from moec.report.page import html, markdown
from tests.proof.bounded import WrongAt
from tests.proving import cache, verify
from tests.reported import CASES
from tests.whole_zoo import build
from tests.zoo import captured, source


def test_it_is_part_of_every_proof_and_of_the_report(mixtral_engine: Path) -> None:
    report = api.read_report(mixtral_engine)
    found = cache(report.proof)
    steps = [w.steps for w in found.consistency.ways]
    assert found.ok and steps[:3] == list(WAYS.values()) and not found.beyond
    assert [w.name for w in found.consistency.ways].count(WRITTEN) == 2  # of each text
    assert [sum(s) for s in steps] == [*[16] * 4, 11, *[256] * 3] and steps[5][0] == 255  # the context of the model
    assert "token by token" in markdown(report) and "token by token" in html(report)


class Forgetful(EagerEngine):
    """Calls with a cache of so many tokens say something else, or are not taken."""

    def __init__(self, program: Program, least: int, takes: bool = True) -> None:
        super().__init__(program)
        self.name, self.least, self.takes = "forgetful", least, takes

    def holds(self, sizes: Mapping[str, int]) -> bool:
        return self.takes or sizes["past_sequence"] + sizes["sequence"] < self.least

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        past = inputs["past_key_values.0.key"].shape[2]
        outputs = super().run(inputs)
        return {**outputs, "logits": outputs["logits"] * (0.9 if past >= self.least and self.takes else 1)}


@pytest.mark.parametrize("least", [13, 254])
def test_a_cache_that_is_wrong_from_a_length_on_is_found(least: int) -> None:
    program = captured("mistral")
    found = cache(verify(source("mistral"), Forgetful(program, least), program)).consistency
    assert not found.ok and (max(w.deviation for w in found.ways[:3]) < 1e-4) == (least > 16)


@pytest.mark.parametrize("wrong", [lambda _batch, new, past: new == 1 and 40 < past < 200,
                                   lambda _batch, new, past: new > 33 and past > 0])  # fmt: skip
def test_calls_of_every_magnitude_are_met_on_the_way_to_a_long_text(wrong: Callable[[int, int, int], bool]) -> None:
    program = captured("mistral")
    subject = Subject(source("mistral"), program, program)
    found = CacheConsistency.measure(Trial(subject, WrongAt(program, wrong)))
    assert found is not None and [way.name for way in found.consistency.failed] == [DOUBLING]


class Growing(EagerEngine):
    """Its recurrent states are a little larger after every call."""

    def __init__(self, program: Program, growth: float) -> None:
        super().__init__(program)
        self.name, self.growth = "growing", growth

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = super().run(inputs)
        return {name: value * self.growth if "recurrent" in name else value for name, value in found.items()}


def test_what_each_call_adds_to_a_state_shows_after_many_tokens() -> None:
    minimax = HuggingFaceSource.from_model(build("minimax"))  # it forgets slowly
    program = minimax.capture()
    right, wrong = (_deviations(minimax, program, growth) for growth in (1.0, 1.0001))
    assert max(right.values()) < 1e-4 and ONE_BY_ONE in right
    assert max(wrong[name] for name in WAYS) < 1e-3 < wrong[ONE_BY_ONE]


def _deviations(source: HuggingFaceSource, program: Program, growth: float) -> dict[str, float]:
    found = CacheConsistency.measure(Trial(Subject(source, program, program), Growing(program, growth)))
    assert found is not None
    return {way.name: way.deviation for way in found.consistency.ways}


class Writing(EagerEngine):
    """A continuation of its own, whose single tokens after the prompt give logits times `factor`."""

    def __init__(self, program: Program, factor: float) -> None:
        super().__init__(program)
        self.name, self.factor = "writing", factor

    def continuation(self) -> Any:
        text = TensorContinuation(self)
        step = text.step
        text.step = lambda ids, mask: step(ids, mask) * (self.factor if ids.shape[1] == 1 else 1)  # type: ignore[method-assign]
        return text


@pytest.mark.parametrize("passes", ["", "find-moe, skip-experts(alpha=0.5)"])
def test_a_text_that_only_the_engine_writes_wrongly_is_found(passes: str) -> None:
    """As a captured step would: no other call is one. Beside the model's calls, too, and where each call matters."""
    captured_one = captured("mixtral")
    program = Pipeline.parse(passes).run(captured_one)[0] if passes else captured_one
    subject = Subject(source("mixtral"), captured_one, program, torch.float32, asked=1.0 if passes else None)
    assert program.by_call is bool(passes)
    for factor in (1.0, 0.9):
        found = CacheConsistency.measure(Trial(subject, Writing(program, factor)))
        assert found is not None and [w.name for w in found.consistency.ways].count(WRITTEN) == 2
        assert {way.name for way in found.consistency.failed} == ({WRITTEN, IN_TURNS} if factor < 1 else set())
        assert (found.error() is None) is (factor == 1)


class Late(EagerEngine):
    """Single tokens after nine to eleven others say something else."""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        past, outputs = inputs["past_key_values.0.key"].shape[2], super().run(inputs)
        wrong = 9 <= past < 12 and inputs["input_ids"].shape[1] == 1
        return {**outputs, "logits": outputs["logits"] * (0.9 if wrong else 1)}


def test_the_ways_that_failed_are_those_that_are_compared_with_the_model() -> None:
    program = captured("mixtral")
    found = CacheConsistency.measure(Trial(Subject(source("mixtral"), program, program, torch.float32), Late(program)))
    assert found is not None
    short = {way.steps for way in found.consistency.failed if way.name != DOUBLING}
    assert (
        short == {(9, *[1] * 7), (1,) * 16} and len(found.consistency.failed) == 3
    )  # a single token stands after nine


def test_texts_go_past_the_window_and_end_with_the_context_or_where_the_engine_does() -> None:
    program = captured("mistral")
    found = cache(verify(source("mistral"), EagerEngine(program), program))
    assert found.ok and [w.steps for w in found.consistency.ways[3:]] == [
        (4, 1, 1, 1, 1, 1), (7, 1, 1), (255, 1), (1, 1, 2, 1, 4, 1, 8, 1, 16, 1, 32, 1, 64, 1, 122),
    ]  # fmt: skip
    narrow = cache(verify(source("mistral"), Forgetful(program, 40, takes=False), program))
    assert narrow.ok and narrow.consistency.ways[-2].steps == (38, 1)


def test_every_call_of_a_text_is_named() -> None:
    assert {"batch": 3, "sequence": 1, "past_sequence": 15} in SHORT.every_call()
    assert text_past(200, 512).sizes == {"batch": 2, "sequence": 204}
    assert all(s["sequence"] + s["past_sequence"] <= 204 for s in text_past(200, 512).every_call())


def test_a_model_that_says_something_else_when_a_text_is_cut_is_its_own_yardstick(tmp_path: Path) -> None:
    """longrope: 33 tokens in one go turn every key by the long factors, 31 and two more only some."""
    CASES["longrope"].save(tmp_path / "model")
    report = moec.compile(str(tmp_path / "model"), out=tmp_path / "engine")
    ways = cache(report.proof).consistency.ways
    assert any("prompt of 31, then token by token, each call beside the model's" in way.name for way in ways)
    assert len([way for way in ways if "beside" not in way.name]) >= 3


def _held_louder(program: Program) -> Program:
    """Held keys of the first layer 1.5 times as large, by a pass with a budget: only calls with a cache show it."""
    (held,) = [n for n in program.graph.nodes if n.op == "placeholder" and n.target == "past_key_values_0_key"]
    readers, last = list(held.users), [n for n in program.graph.nodes if n.op == "placeholder"][-1]
    with program.graph.inserting_before(last.next):
        louder = program.graph.call_function(torch.ops.aten.mul.Tensor, (held, 1.5))
    louder.meta = dict(held.meta)
    for reader in readers:
        reader.replace_input_with(held, louder)
    program.finish()
    return program


@pytest.mark.parametrize("itself", [False, True], ids=["", "so does the model"])
def test_what_a_pass_does_to_later_calls_alone_is_no_excuse(itself: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    program = _held_louder(captured("llama"))
    program.history.append(AppliedPass("louder", 1, "approximate"))
    subject = Subject(source("llama"), captured("llama"), program)
    if itself:
        monkeypatch.setattr(Subject, "open_reference", lambda _subject: EagerEngine(_held_louder(captured("llama"))))
    found = CacheConsistency.measure(Trial(subject, EagerEngine(program)))
    assert found is not None and found.ok is itself
    assert itself or "chunks" in str(found.error())


def test_of_a_model_that_moves_in_one_way_only_that_way_is_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    program = _held_louder(captured("llama"))
    program.history.append(AppliedPass("louder", 1, "approximate"))
    model = WrongAt(captured("llama"), lambda _batch, new, past: new == 1 and past < 9)
    monkeypatch.setattr(Subject, "open_reference", lambda _subject: model)
    found = CacheConsistency.measure(Trial(Subject(source("llama"), captured("llama"), program), EagerEngine(program)))
    assert found is not None and not found.ok
    failed = {way.name for way in found.consistency.failed}
    assert {"chunks", SINGLY} <= failed and "token by token" not in failed
