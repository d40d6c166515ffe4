"""What is drawn of an estimate, with the figures that the estimate has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moec.planning.estimate import estimate
from moec.planning.question import Question
from moec.report.plan_charts import (
    experts_chart,
    memory_chart,
    parts_chart,
    reading_chart,
    roofline_chart,
    settings,
    speed_chart,
)
from tests.planning import configs
from tests.planning.test_advice import shape

pytestmark = pytest.mark.usefixtures("roofline_only")


def asked(tmp_path: Path, config: dict[str, Any], *args: Any) -> Question:
    return Question(estimate(shape(tmp_path, config), *args))


def test_memory_stands_beside_the_devices(tmp_path: Path) -> None:
    chart = memory_chart(asked(tmp_path, configs.MIXTRAL, ("bf16", "int4"), ("h200", "rtx4090"), (1, 64), 8192))
    assert "bf16, batch 64: 152 GiB" in chart and "int4, batch 1: 25.6 GiB" in chart
    assert "one rtx4090, 24.0 GiB" in chart and "int4, batch 64, state of the texts: 64.0 GiB" in chart
    many = memory_chart(asked(tmp_path, configs.LLAMA_1B, ("bf16",), (), tuple(range(1, 20)), 8))
    assert "7 more in the table" in many and "batch 12:" in many and "batch 13:" not in many


def test_the_roofline_has_decoding_left_of_the_ridge_and_the_prompt_right(tmp_path: Path) -> None:
    found = asked(tmp_path, configs.MIXTRAL, ("bf16",), ("h200",), (1, 8), 4096)
    (setting,) = settings(found)
    chart = roofline_chart(found, setting)
    assert "Roofline, h200, bf16" in chart and "ridge, 206 FLOPs a byte" in chart and ">TFLOP/s<" in chart
    spots = {name: float(chart.partition(f"<title>{name}: ")[2].split(" at ")[1].split("<")[0]) for name in SPOTS}
    assert spots["batch 1"] == pytest.approx(1.0, abs=0.1) and spots["batch 8"] < 206 < spots["prompt"]


SPOTS = ("batch 1", "batch 8", "prompt")


def test_speed_and_reading_show_where_dense_and_mixture_change_places(tmp_path: Path) -> None:
    found = asked(tmp_path, configs.MIXTRAL, ("bf16",), ("h200", "rtx4090"), (1,), 8192)
    (setting,) = settings(found)  # no rtx4090 holds it
    speed, read = speed_chart(found, setting), reading_chart(found)
    assert speed and read
    for chart in (speed, read):
        assert "turns at batch 3" in chart and chart.count("<polyline") == 6 and "change places at batch 3" in chart
    assert speed.count("<polygon") == 1 and "tokens/s" in speed and "GB a token" in read
    assert "MixtralForCausalLM: 26.6 at 1" in read  # GB
    assert ">1,024<" in read and ">1,024<" not in speed  # the state of 1,024 texts fits on no h200


def test_what_a_model_does_not_have_is_not_drawn(tmp_path: Path) -> None:
    dense = asked(tmp_path, configs.LLAMA_1B, ("bf16",), ("h200",))
    assert experts_chart(dense) is None and "routed" not in parts_chart(dense.shape)
    alone = reading_chart(dense)
    assert alone and "change places" not in alone and alone.count("<polyline") == 2
    bert = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 384, "num_attention_heads": 12}
    encoder = asked(tmp_path, bert, ("bf16",), ("h200",), (1,), 128)
    assert reading_chart(encoder) is None and speed_chart(encoder, settings(encoder)[0]) is None
    assert "prompt" in roofline_chart(encoder, settings(encoder)[0])
    experts = experts_chart(asked(tmp_path, configs.MIXTRAL))
    assert experts and "uniform: 2 at 1, 8 at 1024" in experts
