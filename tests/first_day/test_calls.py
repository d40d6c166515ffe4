"""How the first day judges an engine: one text that is wrong in one place is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moec.backends.onnxruntime.session.engine import OnnxruntimeEngine
from moec.execution.engine import Engine
from moec.program.decoder_signature import MASK, present_name
from moec.targets.target import Target
from tests.cuda_stand_in.engines import make
from tests.first_day.day import rows_of


class Wrong(Engine):
    """An engine of which one thing is wrong: the call's inputs, its outputs, or what a text is given."""

    def __init__(self, engine: Any, inputs: Callable[..., Any], outputs: Callable[..., Any], text: bool) -> None:
        self.inputs, self.outputs, self.name = engine.inputs, engine.outputs, engine.name
        self._engine, self._before, self._after, self._text = engine, inputs, outputs, text

    def run(self, inputs: Any) -> Any:
        return self._engine.run(inputs) if self._text else self._after(self._engine.run(self._before(dict(inputs))))

    def continuation(self) -> Any:
        text = self._engine.continuation()
        step = text.step
        if self._text:
            text.step = lambda ids, mask: self._after(step(*self._before(ids, mask)))
        return text

    def close(self) -> None:
        self._engine.close()


def same(*given: Any) -> Any:
    return given if len(given) > 1 else given[0]


def no_padding(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, MASK: torch.ones_like(given[MASK])}


def second_text(found: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.cat([value[:1], value[:1]]) for name, value in found.items()}


def last_place(found: dict[str, Any]) -> dict[str, Any]:
    """What a call has written into the first layer's keys is the place before it."""
    name = present_name("past_key_values.0.key")
    value = found[name].clone()
    value[:, :, -1] = value[:, :, -2]
    return {**found, name: value}


def padding_in_texts(ids: np.ndarray, mask: np.ndarray) -> Any:
    return ids, np.ones_like(mask)


def after_the_window(logits: np.ndarray) -> np.ndarray:
    """Later steps have the second text's logits shifted by one token of the vocabulary."""
    after_the_window.calls += 1
    return logits if after_the_window.calls % 12 < 9 else np.stack([logits[0], np.roll(logits[1], 1)])


after_the_window.calls = 0

MUTANTS = {
    "padding is not masked": (no_padding, same, False),
    "the second text is the first": (same, second_text, False),
    "a step's keys are the place before": (same, last_place, False),
    "padding counts in a text": (padding_in_texts, same, True),
    "a text is wrong in its last steps": (same, after_the_window, True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with a window of 8 places."""
    out = tmp_path_factory.mktemp("engines") / "gpt_oss"
    make("gpt_oss", "fp16", out, layers=2)
    return out


def judged(folder: Path, out: Path, wrong: Any = None) -> tuple[str, str]:
    from first_day_engines import judge
    from first_day_graphs import Facts
    from first_day_rows import run

    def opened(folder: Path, target: str) -> Engine:
        engine = OnnxruntimeEngine(folder, Target.parse(target))
        return Wrong(engine, *wrong) if wrong else engine

    def work(rows: Any) -> None:
        for _ in rows.todo(["gpt_oss/fp16"]):
            judge(rows, Facts("gpt_oss/fp16", "onnxruntime:cuda,precision=fp16"), folder, "cpu", opened)

    return run(rows_of(out), work)


def test_a_right_engine_is_right(folder: Path, tmp_path: Path) -> None:
    assert judged(folder, tmp_path) == ("done", "")


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_engine_is_found(folder: Path, tmp_path: Path, mutant: str) -> None:
    after_the_window.calls = 0
    state, reason = judged(folder, tmp_path, MUTANTS[mutant])
    assert state == "wrong" and "relative error" in reason


def test_of_a_text_in_half_precision_one_token_of_ten_may_differ_and_not_two() -> None:
    from first_day_calls import errors, worst

    right = torch.ones(2, 12, 4)

    def off(tokens: int, draws: int) -> Callable[[int], Any]:
        def draw(seed: int) -> Any:
            wrong = right.clone()
            wrong[1, : tokens if seed < draws else 0] *= 2
            return errors({"x": wrong}, {"x": right}, None, 0, 0.9)

        return draw

    assert worst(off(1, 5), half=True) == worst(off(12, 2), half=True) == 0
    assert worst(off(2, 3), half=True) == worst(off(2, 1), half=False) == 1
    nan = {"x": right / 0 * 0}
    assert errors(nan, {"x": right}, None, 0, 0.9)["x", 0] == float("inf")
