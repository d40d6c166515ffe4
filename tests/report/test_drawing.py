"""Drawings are in proportion and inside their frame, have axes, and say in words what they show."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from moec.report.drawing import (
    HEIGHT,
    WIDTH,
    LogAxis,
    axis,
    bar_chart,
    dots,
    dots_height,
    figure,
    heat_map,
    line_chart,
    lying_bars,
    short_names,
    span_text,
)

NUMBER = "{:.3g}"


def elements(drawn: Markup, tag: str) -> list[dict[str, str]]:
    return [dict(e.attrib) for e in ElementTree.fromstring(str(drawn)).iter(tag)]


def texts(drawn: Markup) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(str(drawn)).iter("text")]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 3.7), (0.0, 1e-7), (2.0, 2.0), (0.0, 0.0), (95.0, 1e6), (0.0, math.inf), (math.nan, 1.0)]
)
def test_an_axis_holds_its_values_between_few_round_figures(low: float, high: float) -> None:
    found = axis(low, high)
    assert 2 <= len(found.ticks) <= 8 and (found.low, found.high) == (found.ticks[0], found.ticks[-1])
    for value in (low, high):
        assert 0.0 <= found.share(value) <= 1.0
        assert not math.isfinite(value) or found.low <= value <= found.high * (1 + 1e-9)
    steps = {f"{b - a:.3e}" for a, b in zip(found.ticks, found.ticks[1:], strict=False)}
    assert len(steps) == 1 and steps.pop()[0] in "125"


def test_a_logarithmic_axis_has_equal_ratios_equally_far_apart() -> None:
    found = LogAxis.over(0.3, 47.0)
    assert (found.low, found.high) == (0.2, 50.0)
    assert found.share(4.0) - found.share(2.0) == pytest.approx(found.share(20.0) - found.share(10.0))
    assert len(LogAxis.over(1e-3, 1e4).ticks) < 12


def test_bars_are_in_proportion_and_empty_ones_are_marked() -> None:
    drawn = bar_chart((40, 20, 0))
    tall, half, none = elements(drawn, "rect")
    assert float(tall["height"]) == pytest.approx(2 * float(half["height"]), abs=0.2)
    assert "class" not in half and none["class"] == "missed" and float(none["height"]) > 0
    assert {"tokens", "expert", "0", "1", "2", "40"} <= set(texts(drawn)) and "expert 1: 20 tokens" in drawn


@pytest.mark.parametrize("count", [1, 3, 64, 512])
def test_nothing_is_drawn_outside_of_the_frame(count: int) -> None:
    names = [f"model.layers.{k}.mlp" for k in range(count)]
    drawings = [
        bar_chart(range(count), range(count)),
        line_chart({"a": [0.1] * count, "b": [math.nan] * count}, names, axis(0, 0.1), "error", str, NUMBER),
    ]
    for drawn in drawings:
        rects = elements(drawn, "rect")
        right = [float(r["x"]) + float(r["width"]) for r in rects] + [float(c["cx"]) for c in elements(drawn, "circle")]
        low = [float(r["y"]) + float(r["height"]) for r in rects] + [float(c["cy"]) for c in elements(drawn, "circle")]
        assert max(right) <= WIDTH and min(low) >= 0 and max(low) <= HEIGHT
        ticks = [float(t["x"]) for t in elements(drawn, "text") if t["text-anchor"] == "middle"]
        assert len(ticks) <= 40  # figures below the axis, thinned out where there are many


def test_lines_are_in_proportion_and_layers_are_named() -> None:
    names = [f"model.layers.{k}" for k in range(3)]
    drawn = line_chart({"error": [0.0, 0.02, math.inf]}, names, axis(0, 0.04), "error", "{:.2g}".format, "{:.1e}")
    zero, half, top = (float(c["cy"]) for c in elements(drawn, "circle"))
    assert zero - half == pytest.approx(half - top, abs=0.2) and top < half < zero
    assert {"0", "1", "2", "model.layers.N", "error", "0.04"} <= set(texts(drawn))
    assert "model.layers.2: inf" in drawn and 'aria-label="error: 0.0e+00 to inf"' in drawn


def test_lying_bars_are_in_proportion() -> None:
    small, large, none = elements(lying_bars({"a": 1.0, "b": 4.0, "c": 0.0}, NUMBER.format), "rect")
    assert float(large["width"]) == pytest.approx(4 * float(small["width"]), abs=0.2) and none["width"] == "1.0"
    assert elements(lying_bars({"a": math.nan, "b": math.inf}, NUMBER.format), "rect")[0]["width"] == "1.0"


def test_every_time_is_a_dot() -> None:
    drawn = dots({"a": [1.0, 1.1, 1.2], "b": [1.5]}, "ms")
    assert len(elements(drawn, "circle")) == 4 and "ms" in texts(drawn) and "ms, logarithmic" not in texts(drawn)
    assert [e["class"] for e in elements(drawn, "line")].count("median") == 2
    assert "ms, logarithmic" in texts(dots({"a": [1.0, 1.1, 90.0]}, "ms"))
    assert all(float(c["cy"]) < dots_height(2) for c in elements(drawn, "circle"))


def test_a_map_has_a_field_for_every_number() -> None:
    rows = {f"layers.{k}.mlp": [0, 1, 4, 8] for k in range(24)}
    drawn = heat_map(rows, "expert")
    paths = {p["class"]: p["d"].count("M") for p in elements(drawn, "path")}
    assert paths == {"missed": 24, "s1": 24, "s4": 24, "s8": 24} and len(heat_map(rows, "expert")) < 5000
    assert {"layers.N.mlp", "expert", "0", "3"} <= set(texts(drawn))


def test_names_are_cut_to_what_differs() -> None:
    assert short_names(["a.b.0.c", "a.b.1.c", "a.b.12.c"]) == (["0", "1", "12"], "a.b.N.c")
    assert short_names(["encoder.0", "decoder.0"]) == (["encoder", "decoder"], "N.0")
    assert short_names(["a"]) == (["a"], "") and short_names(["a", "a.b"]) == (["a", "a.b"], "")


def test_texts_of_others_are_escaped() -> None:
    drawn = lying_bars({"<b>\x1b": 1.0}, NUMBER.format)
    assert "&lt;b&gt;\\x1b" in drawn and "<b>" not in figure("<b>", "<i>", drawn)


def test_a_span_in_words() -> None:
    assert span_text((1000, 20)) == "20 to 1,000" and span_text((7, 7)) == "7"
    assert span_text((0.5,), "{:.1%}") == "50.0%" and re.match(r"0\.1 to 0\.2", span_text((0.2, 0.1)))
