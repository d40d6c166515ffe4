"""Charts are in proportion, inside their drawing, and draw something for every value."""

from __future__ import annotations

import math
from dataclasses import replace

from moec.report.charts import bars, calibration_plots, layer_plots, share_bars, span_text
from tests.report.test_report import INSIDE


def test_bars_are_in_proportion_and_inside_the_drawing() -> None:
    few, many = bars((4, 2, 0)), bars((1,) * 256)
    assert few[0]["height"] == 2 * few[1]["height"] and few[2]["height"] == 1
    assert all(b["y"] + b["height"] == few[0]["height"] for b in few)
    assert many[-1]["x"] + many[-1]["width"] <= 720 and len({b["x"] for b in many}) == 256


def test_bars_of_two_charts_have_one_scale() -> None:
    after, before = bars((4, 2), 8), bars((8, 1), 4)
    assert after[0]["height"] == 4 * before[1]["height"] and after[0]["height"] * 2 == before[0]["height"]


def test_lines_are_in_proportion_and_inside_the_drawing() -> None:
    agreement, error = layer_plots(INSIDE)
    assert (agreement["low"], agreement["high"], error["low"], error["high"]) == ("90%", "100%", "0", "0.04")
    first, last = error["lines"]["‖d‖ / ‖untouched‖"]
    assert (
        last["y"] == 6 and first["y"] == 6 + 28 and first["x"] < last["x"] < error["width"]
    )  # 0.04 at the top, 0.02 half-way
    many = replace(INSIDE, layers=INSIDE.layers * 200, blocks=())
    assert len(layer_plots(many)) == 1 and layer_plots(many)[0]["width"] <= 720
    assert layer_plots(replace(INSIDE, blocks=(), layers=(replace(INSIDE.layers[0], relative=0.0),)))[0]["lines"]


def test_what_is_not_finite_is_drawn_at_the_top() -> None:
    broken = replace(INSIDE, blocks=(), layers=(INSIDE.layers[0], replace(INSIDE.layers[1], relative=math.inf)))
    first, last = layer_plots(broken)[0]["lines"]["‖d‖ / ‖untouched‖"]
    assert first["y"] == last["y"] == 6 and "inf" in last["text"]
    assert [b["width"] for b in share_bars({"a": math.nan, "b": math.inf, "c": 2.0})] == [1.0, 360, 360]


def test_lying_bars_are_in_proportion() -> None:
    a, b, c = share_bars({"a": 1.0, "b": 4.0, "c": 0.0})
    assert (
        b["width"] == 4 * a["width"]
        and c["width"] == 1
        and [r["y"] for r in (a, b, c)] == [0, 20, 40]
        and b["text"] == "4"
    )
    assert share_bars({"a": 0.0})[0]["width"] == 1


def test_fitted_routers_have_a_chart_and_other_passes_none() -> None:
    block = {"module": "blocks.0", "identical_before": 0.62, "identical_after": 0.8}
    steps = [
        {"name": "calibrate-router", "facts": {"blocks": [block, {**block, "module": "blocks.1"}]}},
        {"name": "quantize", "facts": {"blocks": [{"module": "x"}]}},
    ]
    (plot,) = calibration_plots([*steps, {"name": "fuse-moe"}])
    assert (plot["low"], plot["high"], plot["first"], plot["last"]) == ("60%", "100%", "blocks.0", "blocks.1")
    assert plot["lines"]["fitted"][0]["y"] < plot["lines"]["as it came"][0]["y"] and "fitted: 80.00%" in plot["text"]


def test_a_span_in_words() -> None:
    assert (
        span_text((1000, 20)) == "20 to 1,000" and span_text((7, 7)) == "7" and span_text((0.5,), "{:.1%}") == "50.0%"
    )
