"""The cache of keys and values makes no difference, and a cache that does is found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from moec import api
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.generation import continuation
from moec.program.decoder_signature import cache_inputs
from moec.proof.cache_consistency import CALLS, IN_TURNS, SIZES, WAYS, WRITTEN, check_consistency
from moec.proof.checks.cache import CacheConsistency
from moec.proof.compare import Tolerance

TOLERANCE = Tolerance(1e-3)


class Spoiled(Engine):
    """An engine behind a cache that somebody shifts by one token, or scales."""

    def __init__(self, engine: Engine, how: str) -> None:
        self.name, self.inputs, self.outputs, self.engine, self.how = (
            "spoiled",
            engine.inputs,
            engine.outputs,
            engine,
            how,
        )

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = dict(inputs)
        for spec in cache_inputs(self.inputs):
            given[spec.name] = given[spec.name].roll(1, 2) if self.how == "shifted" else given[spec.name] * 1.01
        return self.engine.run(given)


@pytest.fixture(scope="module")
def engine(mixtral_engine: Path) -> Engine:
    return api.load(mixtral_engine)


@pytest.fixture(scope="module")
def sample(mixtral_engine: Path) -> dict[str, Tensor]:
    source = api.open_source(api.read_report(mixtral_engine).source)
    return source.sample(SIZES, 3)


def test_every_way_covers_the_text_and_the_sample_is_padded_on_both_sides(sample: dict[str, Tensor]) -> None:
    assert all(sum(steps) == SIZES["sequence"] for steps in WAYS.values())
    mask = sample["attention_mask"]
    assert mask[0].all() and mask[1, 0] == 0 and mask[2, -1] == 0


def test_a_right_cache_makes_no_difference(engine: Engine, sample: dict[str, Tensor]) -> None:
    found = check_consistency(engine, sample, TOLERANCE)
    assert found.ok and max(way.deviation for way in found.ways) < 1e-4
    assert [way.name for way in found.ways] == [*WAYS, WRITTEN, IN_TURNS]
    CacheConsistency(found).require()


def test_logits_that_are_wrong_where_a_text_is_written_are_found(engine: Engine, sample: dict[str, Tensor]) -> None:
    """Of a text that is written, a graph may leave out all logits but the last: no other call does that."""

    class Cut(Spoiled):
        def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return self.engine.run(inputs)

        def continuation(self) -> Any:
            text = continuation(self.engine)
            step = text.step
            text.step = lambda ids, mask: step(ids, mask) * (0.99 if ids.shape[1] > 1 else 1.0)  # type: ignore[method-assign]
            return text

    found = check_consistency(Cut(engine, ""), sample, TOLERANCE)
    assert [way.name for way in found.ways if way.deviation > 1e-3] == [WRITTEN, IN_TURNS]
    with pytest.raises(MoecError, match="when a text comes as one that is being written"):
        CacheConsistency(found).require()


class Leaking(Spoiled):
    """An engine whose texts share what the newest of them has, or are wrong after the first."""

    texts, newest = 0, None

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.engine.run(inputs)

    def continuation(self) -> Any:
        self.texts += 1
        text: Any = continuation(self.engine)
        if self.how == "shared":
            self.newest = text
            return SimpleNamespace(step=lambda ids, mask: self.newest.step(ids, mask))  # type: ignore[attr-defined]
        factor = 1.0 if self.texts == 1 else 0.9
        return SimpleNamespace(step=lambda ids, mask: text.step(ids, mask) * factor)


@pytest.mark.parametrize("how", ["shared", "left behind"])
def test_what_one_text_leaves_to_another_is_found(engine: Engine, sample: dict[str, Tensor], how: str) -> None:
    try:
        failed = [way.name for way in check_consistency(Leaking(engine, how), sample, TOLERANCE).failed]
    except MoecError as error:  # a cache that is longer than the mask
        failed = [IN_TURNS] if error.code == "M211" else []
    assert failed == [IN_TURNS]


@pytest.mark.parametrize("how", ["shifted", "scaled"])
def test_a_wrong_cache_is_found(engine: Engine, sample: dict[str, Tensor], how: str) -> None:
    found = check_consistency(Spoiled(engine, how), sample, TOLERANCE)
    assert not found.ok and "chunks" in str(found)
    with pytest.raises(MoecError, match="something else") as caught:
        CacheConsistency(found).require()
    assert caught.value.code == "M101"


def test_nan_is_not_equal(engine: Engine, sample: dict[str, Tensor]) -> None:
    class Broken(Spoiled):
        def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            outputs = self.engine.run(inputs)
            return (
                {**outputs, "logits": torch.full_like(outputs["logits"], torch.nan)}
                if inputs["input_ids"].shape[1] == 1
                else outputs
            )

    assert not check_consistency(Broken(engine, ""), sample, TOLERANCE).ok


class Hasty(Spoiled):
    """An engine whose results depend on what else comes in the same call, as passes may make them."""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = self.engine.run(inputs)
        return {**outputs, "logits": outputs["logits"] * (1 + 0.1 * inputs["input_ids"].shape[1])}


def test_where_the_call_matters_each_call_is_compared_with_the_same_call(
    engine: Engine, sample: dict[str, Tensor]
) -> None:
    hasty = Hasty(engine, "")
    assert not check_consistency(hasty, sample, TOLERANCE).ok
    found = check_consistency(hasty, sample, TOLERANCE, hasty)
    assert (
        found.ok
        and found.by_call
        and [w.steps for w in found.ways] == list(CALLS.values())
        and "PyTorch" in found.title
    )
    assert not check_consistency(engine, sample, TOLERANCE, hasty).ok, "another rule passes for this one"


@pytest.mark.parametrize("how", ["shifted", "scaled"])
def test_where_the_call_matters_a_wrong_cache_is_found_still(
    engine: Engine, sample: dict[str, Tensor], how: str
) -> None:
    found = check_consistency(Hasty(Spoiled(engine, how), ""), sample, TOLERANCE, Hasty(engine, ""))
    assert not found.ok and found.ways[0].deviation < 1e-4 and all(way.deviation > 1e-3 for way in found.ways[1:])
    with pytest.raises(MoecError, match="than the program in PyTorch when a text comes as chunks"):
        CacheConsistency(found).require()
