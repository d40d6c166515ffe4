"""What a question comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.planning.estimate import estimate
from moec.planning.question import Question, gigabytes, listed
from tests.planning import configs
from tests.planning.test_advice import shape


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


def test_words() -> None:
    assert gigabytes(16.2e9) == "16.2 GB"
    assert [listed(n) for n in ([1], [1, 8], [1, 8, 1024])] == ["1", "1 and 8", "1, 8 and 1,024"]
