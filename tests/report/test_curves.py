"""Curves, points and stacked bars: what is drawn is where its figures say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moec.report.curves import HEIGHT, Curve, Plane, Spot, curve_chart, powers, stacked_bars
from moec.report.drawing import BOTTOM, LEFT, RIGHT, WIDTH, LogAxis
from moec.report.rendering import TEMPLATES
from moec.shown import size_of
from tests.report.test_in_browser import luminance

PLANE = Plane(powers(1, 1024), LogAxis.over(1, 100), "batch", "GB")


def test_a_curve_goes_through_its_points_and_its_band_around_it() -> None:
    chart = str(
        curve_chart([Curve("a <b>", ((1, 1), (1024, 100)), ((1, 2), (50, 100)))], PLANE, (), {"turns at 32": 32})
    )
    assert f'class="line" points="{LEFT:.1f},{HEIGHT - BOTTOM:.1f} {WIDTH - RIGHT:.1f},22.0"' in chart
    assert "<polygon" in chart and "a &lt;b&gt;: 1 at 1, 100 at 1024" in chart and "<b>" not in chart
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    assert f'class="turn" x1="{middle:.1f}"' in chart and "turns at 32" in chart


def test_a_spot_spans_its_interval() -> None:
    chart = str(curve_chart([Curve("roof", ((1, 1), (1024, 100)))], PLANE, [Spot("prompt", 32, 10, 100)]))
    tall = (HEIGHT - 22 - BOTTOM) / 2
    assert f'height="{tall:.1f}"><title>prompt: 10 to 100 at 32</title>' in chart and "prompt: 10 to 100" in chart


def test_axes_of_powers() -> None:
    assert powers(1, 1024).ticks == (1, 4, 16, 64, 256, 1024) and powers(0.9, 1.1).ticks == (0.5, 1, 2)
    assert powers(1, 1).high == 2 and powers(2, 5000, 10).ticks == (1, 10, 100, 1000, 10_000)


def test_bars_are_stacked_and_limits_are_where_they_belong() -> None:
    rows = {"bf16": {"weights": 60.0, "state": 40.0, "none": 0.0}, "int4": {"weights": 15.0, "state": 40.0}}
    chart = str(stacked_bars(rows, {"one card, 50": 50.0}, "{:.0f}".format, 1))
    room = WIDTH - 2 * RIGHT
    bars = [
        tuple(map(float, m)) for m in re.findall(r'class="mark c\d" x="([\d.]+)" y="[\d.]+" width="([\d.]+)" h', chart)
    ]
    assert bars[0] == pytest.approx((RIGHT, 0.6 * room), abs=0.1)
    assert bars[1] == pytest.approx((RIGHT + 0.6 * room, 0.4 * room), abs=0.1)
    assert f'class="turn" x1="{RIGHT + room / 2:.1f}"' in chart and "one card, 50" in chart
    assert "bf16: 100" in chart and "bf16, weights: 60" in chart and "none" not in chart


def test_sizes_have_units() -> None:
    assert "bf16: 3.00 GiB" in stacked_bars({"bf16": {"weights": 3 * 2**30}}, {}, size_of, 2**30)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["light", "dark", "print"])
def test_every_colour_is_seen_on_its_paper(place: int) -> None:
    """At least 3 to 1 for what is drawn (WCAG 2.1, 1.4.11), and 4.5 to 1 for the figures of axes (1.4.3)."""
    look = Path(TEMPLATES / "look.css").read_text()
    found = dict(re.findall(r"--(\w+): (#[0-9a-f]+)", re.findall(r":root \{[^}]*\}", look)[place]))

    def light(name: str) -> float:
        digits = found[name][1:]
        digits = digits if len(digits) == 6 else "".join(2 * d for d in digits)
        return luminance(f"rgb({', '.join(str(int(digits[k : k + 2], 16)) for k in (0, 2, 4))})")

    for name, least in {"bar": 3, "part": 3, "good": 3, "more": 3, "bad": 3, "soft": 4.5, "ink": 7}.items():
        brighter, darker = max(light(name), light("paper")), min(light(name), light("paper"))
        assert (brighter + 0.05) / (darker + 0.05) >= least, f"{name} is {found[name]} on {found['paper']}"
