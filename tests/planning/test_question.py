"""What a question comes to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moec.planning.advice import advise
from moec.planning.estimate import estimate
from moec.planning.load import Load
from moec.planning.question import Question, gigabytes, listed
from moec.planning.serving import Asked
from tests.planning import configs
from tests.planning.test_advice import shape

pytestmark = pytest.mark.usefixtures("roofline_only")


def test_costs_are_times_where_a_device_holds_it_and_bytes_elsewhere(tmp_path: Path) -> None:
    mixtral = shape(tmp_path, configs.MIXTRAL)
    asked = Question(estimate(mixtral, ("bf16", "int4"), ("rtx4090", "h100"), (8, 1, 8), 1))
    assert asked.batches == [1, 8] and [f.name for f in asked.formats] == ["bf16", "int4"]
    assert asked.fitting and (asked.fitting[0].name, asked.format.name) == ("h100", "int4")
    assert asked.cost(mixtral, 1) == pytest.approx(6.77e9 / 3.35e12 / 0.88, rel=0.02)
    assert asked.measure == "by the time on h100 in int4"
    plain = Question(estimate(mixtral, context=1))
    assert plain.fitting is None and plain.cost(mixtral, 4) == plain.bytes_a_token(mixtral, 4)
    assert plain.measure == "by the bytes read in bf16"


def test_a_recipe_packs_the_model_and_its_dense_twins(tmp_path: Path) -> None:
    """Experts in 4 bits where all else stays in 16: a twin has its network in 4 bits, too."""
    mixtral = shape(tmp_path, configs.MIXTRAL)
    codes = {t.name: t.count // 2 for t in mixtral.tensors if t.part == "routed experts"}
    packed = replace(mixtral, tensors=tuple(replace(t, codes=codes.get(t.name, 0)) for t in mixtral.tensors))
    asked = Question(estimate(mixtral, ("mine", "bf16"), (), (1,), 1, packed={"mine": packed}))
    mine, plain = asked.formats
    assert asked.bytes_a_token(mixtral, 1, mine) / 1e9 == pytest.approx(2 * 1.47 + 11.27 / 2, rel=0.02)
    active = asked.rivals[0].shape
    assert asked.bytes_a_token(active, 1, mine) == pytest.approx(asked.bytes_a_token(mixtral, 1, mine), rel=1e-3)
    assert asked.bytes_a_token(active, 1, plain) == pytest.approx(25.5e9, rel=1e-2)
    assert [a.rule for a in advise(asked.found)].count("dense or mixture") == 2


def test_a_measured_load_is_that_of_its_own_model(tmp_path: Path) -> None:
    mixtral, qwen = shape(tmp_path, configs.MIXTRAL), shape(tmp_path, configs.QWEN3_30B)
    load = Load("load.json", layers=((0.5, 0.5, *[0.0] * 6),) * 32)
    asked = Question(estimate(mixtral, context=1, versus=qwen, asked=Asked(load=load)))
    assert asked.step(mixtral, 64).experts == pytest.approx(2) and asked.step(qwen, 64).experts > 100
    assert asked.step(mixtral, 64, rows=3).experts == pytest.approx(2)


def test_the_state_that_was_asked_for_counts_everywhere(tmp_path: Path) -> None:
    mixtral = shape(tmp_path, configs.MIXTRAL)
    whole, half = (Question(estimate(mixtral, ("bf16",), ("h200",), (8,), 8192, state=s)) for s in ("bf16", "int8"))
    assert half.step(mixtral, 8).state_bytes == pytest.approx(whole.step(mixtral, 8).state_bytes / 2, rel=0.05)
    for asked in (whole, half):
        assert asked.fitting and asked.memory(mixtral, 8, asked.format) == asked.found.situations[0].memory
        assert asked.time(mixtral, 8, *asked.fitting) == asked.found.situations[0].decode_time


def test_words() -> None:
    assert gigabytes(16.2e9) == "16.2 GB"
    assert [listed(n) for n in ([1], [1, 8], [1, 8, 1024])] == ["1", "1 and 8", "1, 8 and 1,024"]
