"""Charts as geometry: what a template draws as inline SVG, in pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moec.proof.agreement import Agreement

_BAR, _GAP, HEIGHT = 14, 4, 56  # an expert's bar, the space after it, the tallest bar
_WIDTH = 720
_STEP, AXIS, ROOM = 28, 48, 6  # of a line chart: between two points, for the axis's labels, and around the drawing
_LABEL, _LONGEST, _LINE = (
    170,
    360,
    20,
)  # of a chart of lying bars: for their names, the longest bar, and from one to the next


def bars(assignments: tuple[int, ...], top: int = 1) -> list[dict[str, float]]:
    """Rectangles of a bar chart, an expert each: x, y, width and height in pixels, its number and its count; an empty
    one is 1 pixel high.

    The tallest bar stands for `top` or for the largest count, whichever is more.
    """
    step = min(_BAR + _GAP, _WIDTH / max(1, len(assignments)))
    top = max([*assignments, top])
    heights = [max(1.0, round(HEIGHT * n / top, 2)) for n in assignments]
    return [
        {
            "x": round(e * step, 2),
            "y": HEIGHT - h,
            "width": round(step * _BAR / (_BAR + _GAP), 2),
            "height": h,
            "expert": e,
            "count": n,
        }
        for e, (n, h) in enumerate(zip(assignments, heights, strict=True))
    ]


def layer_plots(inside: Agreement) -> list[dict[str, Any]]:
    """Line charts over the layers: the agreement of the routers, and the error. Each has a title, axis labels, a width,
    and named series."""
    found, blocks = [], inside.blocks
    if blocks:
        low = min(0.9, math.floor(10 * min(b.identical for b in blocks)) / 10)
        series = {"the same experts": [b.shared for b in blocks], "the same sets": [b.identical for b in blocks]}
        found.append(
            _plot("Agreement of the routers", series, [b.module for b in blocks], (low, 1.0), "{:.0%}", "{:.2%}")
        )
    if inside.layers:
        errors = [layer.relative for layer in inside.layers]
        high = max([e for e in errors if math.isfinite(e)], default=0.0)
        found.append(
            _plot(
                "Error of each layer",
                {"‖d‖ / ‖untouched‖": errors},
                [e.module for e in inside.layers],
                (0.0, high),
                "{:.2g}",
                "{:.2e}",
            )
        )
    return found


def _plot(
    title: str, series: dict[str, list[float]], names: list[str], span: tuple[float, float], label: str, exact: str
) -> dict[str, Any]:
    step = min(_STEP, (_WIDTH - AXIS) / len(names))
    low, high = span

    def y(value: float) -> float:  # what is not finite is drawn at the top; its text says what it is
        return round(ROOM + HEIGHT * (high - (value if math.isfinite(value) else high)) / ((high - low) or 1), 2)

    lines = {
        of: [
            {"x": round(AXIS + k * step, 2), "y": y(v), "text": f"{name}: {exact.format(v)}"}
            for k, (name, v) in enumerate(zip(names, values, strict=True))
        ]
        for of, values in series.items()
    }
    return {
        "title": title,
        "low": label.format(low),
        "high": label.format(high),
        "lines": lines,
        "width": round(AXIS + len(names) * step, 2),
        "first": names[0],
        "last": names[-1] if len(names) > 1 else "",
        "text": "; ".join(f"{of}: {span_text(v, exact)}" for of, v in series.items()),
    }


def calibration_plots(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line chart for each pass that fitted routers: the agreement of their choices before and after, over the
    blocks."""
    found = []
    for step in steps:
        blocks = [
            b
            for b in (step.get("facts") or {}).get("blocks", ())
            if {"identical_before", "identical_after", "module"} <= set(b)
        ]
        if blocks:
            series = {
                "as it came": [float(b["identical_before"]) for b in blocks],
                "fitted": [float(b["identical_after"]) for b in blocks],
            }
            low = min(0.9, math.floor(10 * min(map(min, series.values()))) / 10)
            found.append(
                _plot(
                    f"The same sets of experts, {step['name']}",
                    series,
                    [b["module"] for b in blocks],
                    (low, 1.0),
                    "{:.0%}",
                    "{:.2%}",
                )
            )
    return found


def share_bars(values: Mapping[str, float]) -> list[dict[str, Any]]:
    """Lying bars, one below the other: a name, a text, and x, y and width; the longest stands for the largest finite
    value."""
    top = max([v for v in values.values() if math.isfinite(v)], default=0.0) or 1.0
    return [
        {
            "name": name,
            "text": f"{v:.3g}",
            "x": _LABEL,
            "y": k * _LINE,
            "width": round(max(1.0, _LONGEST * (min(v, top) / top if v == v else 0)), 2),
        }
        for k, (name, v) in enumerate(values.items())
    ]


def span_text(values: Iterable[float], form: str = "{:,}") -> str:
    """What a chart shows, in words for those who don't see it: the smallest and the largest value."""
    known = list(values)
    low, high = form.format(min(known)), form.format(max(known))
    return low if low == high else f"{low} to {high}"
