"""Texts on buffers: what a GPU's plan is told for each step, here with ONNX Runtime behind it; the numbers are those of
a cache that grows, and nothing is bound anew but where sizes change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moec.backends.tensorrt.session.fixed_text import FixedText, view_of
from moec.errors import MoecError
from moec.program.decoder_signature import IDS, MASK, PAST, cache_inputs
from tests.backends.tensorrt.decoder import CAPACITY, program, ran, text, whole


class OnCpu:
    """ONNX Runtime as an executor: it copies what it made into the buffers, as if it had been written in place."""

    device, bound = "cpu", None

    def __init__(self, of: OnCpu | None = None) -> None:
        self.binds: list[tuple[int, ...]] = of.binds if of else []
        self.all = of or self  # which counts
        self.captured = self.executed = self.contexts = 0

    def apart(self) -> OnCpu:
        self.all.contexts += 1
        return OnCpu(self.all)

    def bind(self, owner: object, inputs: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        self.bound, self._inputs, self._kept = owner, dict(inputs), dict(kept)
        self.binds.append((*inputs[IDS].shape, inputs[MASK].shape[1]))

    def execute(self) -> dict[str, Tensor]:
        self.all.executed += 1
        names = [o.name for o in ran(CAPACITY).get_outputs()]
        feeds = {name: value.numpy() for name, value in self._inputs.items()}
        found: dict[str, Any] = dict(zip(names, ran(CAPACITY).run(names, feeds), strict=True))
        for name, buffer in self._kept.items():
            buffer.copy_(torch.from_numpy(found.pop(name)))
        return {name: torch.from_numpy(value) for name, value in found.items()}

    def capture(self) -> Callable[[], dict[str, Tensor]] | None:
        self.all.captured += 1
        return self.execute


def written(executor: OnCpu) -> FixedText:
    return FixedText(executor, program().inputs, CAPACITY, "engine")


def steps(one: FixedText, given: dict[str, np.ndarray], first: int) -> list[np.ndarray]:
    """A prompt, then a token at a time."""
    ends = [first, *range(first + 1, given[IDS].shape[1] + 1)]
    starts = [0, *ends[:-1]]
    return [one.step(given[IDS][:, a:b], given[MASK][:, :b]) for a, b in zip(starts, ends, strict=True)]


def test_steps_bind_nothing_and_are_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moec.backends.tensorrt.session.fixed_text.LEAST", 8)
    executor, given = OnCpu(), text(1, 2, CAPACITY, padding=3)
    found = steps(written(executor), given, first=4)
    want = whole(given)
    for at, logits in zip(range(3, CAPACITY), found, strict=True):
        assert np.abs(logits - want[:, at]).max() < 1e-4
    assert executor.binds == [(2, 4, 8), (2, 1, 8), (2, 1, 16), (2, 1, 24)] and executor.captured == 3
    assert executor.executed == len(found), "every token is computed once"


def test_texts_of_one_plan_do_not_disturb_each_other() -> None:
    executor, texts = OnCpu(), [text(seed, 1, 9) for seed in (2, 3)]
    both = [written(executor) for _ in texts]
    for at in range(9):
        for one, given in zip(both, texts, strict=True):
            logits = one.step(given[IDS][:, at : at + 1], given[MASK][:, : at + 1])
            assert np.abs(logits - whole(given)[:, at]).max() < 1e-4
    assert executor.binds == [(1, 1, CAPACITY)] * 2 and executor.captured == 2, "in turns, and each text once"
    assert executor.contexts == 2 and executor.bound is None


def test_one_call_makes_no_context() -> None:
    given, executor = text(6, 1, 5), OnCpu()
    once = FixedText(executor, program().inputs, CAPACITY, "engine", once=True)
    once.advance(torch.from_numpy(given[IDS][:, :1]), torch.from_numpy(given[MASK][:, :1]))
    assert executor.contexts == 0 and len(executor.binds) == 1


def test_a_cache_that_is_there_is_gone_on_with() -> None:
    given, executor = text(4, 2, 10, padding=1), OnCpu()
    first, second = written(executor), written(executor)
    first.advance(torch.from_numpy(given[IDS][:, :7]), torch.from_numpy(given[MASK][:, :7]))
    past = {name.replace("present", "past_key_values"): value for name, value in first.present(7).items()}
    second.fill(past)
    logits = second.advance(torch.from_numpy(given[IDS][:, 7:]), torch.from_numpy(given[MASK]))["logits"]
    assert np.abs(logits.numpy() - whole(given)[:, 7:]).max() < 1e-4
    assert all(value.shape[2] == 10 for value in second.present(10).values())


def test_more_than_there_is_room_for() -> None:
    one, given = written(OnCpu()), text(5, 1, CAPACITY + 1)
    one.step(given[IDS][:, :CAPACITY], given[MASK][:, :CAPACITY])
    with pytest.raises(MoecError, match="25 tokens are more than the 24") as caught:
        one.step(given[IDS][:, CAPACITY:], given[MASK])
    assert caught.value.code == "M211" and "max_past_sequence" in caught.value.fix


def test_a_past_that_has_no_room() -> None:
    past = {name: torch.zeros(1, *shape) for name, shape in _past_shapes(CAPACITY + 6).items()}
    with pytest.raises(MoecError, match="30 tokens are more than the 24") as caught:
        written(OnCpu()).fill(past)
    assert caught.value.code == "M211"


def _past_shapes(length: int) -> dict[str, tuple[int, ...]]:
    return {c.name: c.resolve({"batch": 1, PAST: length})[1:] for c in cache_inputs(program().inputs)}


def test_views_grow_by_doubling() -> None:
    assert [view_of(n, 5120) for n in (1, 64, 65, 128, 129, 4097, 5120)] == [64, 64, 128, 128, 256, 5120, 5120]
