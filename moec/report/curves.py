"""Charts of a plan as inline SVG: curves over logarithmic axes with points on them, and stacked bars beside limits.

They share axes, texts and their look with `moec.report.drawing`, which says why no library draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from moec.report.drawing import BOTTOM, LEFT, RIGHT, WIDTH, Axis, LogAxis, axis, drawn_line, drawn_text, fitted, svg
from moec.shown import one_line

HEIGHT, LEGEND = 230, 16  # of the plot with its axes; of a row of the legend below it
COLOURS = 5  # classes c0 to c4 in look.css
_TOP, _BAR = 22, 14


@dataclass(frozen=True)
class Curve:
    """A line through points, and what it may be above and below.

    Attributes:
        name: for the legend.
        points: x and y, all above 0.
        band: the lowest and the highest y at each point; empty where nothing is known of it.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Spot:
    """A point with a name beside it, and the interval of its y."""

    name: str
    x: float
    low: float
    high: float


@dataclass(frozen=True)
class Plane:
    """Both axes and what they measure."""

    across: Axis
    up: Axis
    across_title: str
    up_title: str
    form: Callable[[float], str] = "{:g}".format

    def x(self, value: float) -> float:
        """Where an x is."""
        return LEFT + (WIDTH - LEFT - RIGHT) * self.across.share(value)

    def y(self, value: float) -> float:
        """Where a y is."""
        return _TOP + (HEIGHT - _TOP - BOTTOM) * (1 - self.up.share(value))


def powers(low: float, high: float, base: int = 2) -> LogAxis:
    """A logarithmic axis from one to another whole power of 2 or 10, with six figures at most."""
    first, last = math.floor(math.log(low, base) + 1e-9), math.ceil(math.log(high, base) - 1e-9)
    last = max(last, first + 1)
    step = math.ceil((last - first + 1) / 6)
    ticks = tuple(float(base) ** k for k in range(first, last + 1, step))
    return LogAxis(float(base) ** first, float(base) ** last, ticks)


def curve_chart(
    curves: Sequence[Curve], plane: Plane, spots: Sequence[Spot] = (), turns: Mapping[str, float] | None = None
) -> Markup:
    """Curves with a legend, named points, and upright lines where something turns.

    Args:
        turns: x by what is written beside the line: above, or where there are spots, below.
    """
    parts = [
        *_axes(plane),
        *(_turn(plane, name, x, k, bool(spots)) for k, (name, x) in enumerate((turns or {}).items())),
    ]
    parts += [_curve(plane, curve, k) for k, curve in enumerate(curves)]
    parts += [_spot(plane, spot) for spot in spots]
    parts += [_key(curve.name, k, HEIGHT + k * LEGEND) for k, curve in enumerate(curves)]
    words = "; ".join([*(_said(c, plane) for c in curves), *(f"{s.name}: {s.low:.3g} to {s.high:.3g}" for s in spots)])
    words += "".join(f"; {name}" for name in turns or {})
    return svg(parts, f"{plane.up_title} over {plane.across_title}. {words}", WIDTH, HEIGHT + len(curves) * LEGEND)


def _said(curve: Curve, plane: Plane) -> str:
    (x0, y0), (x1, y1) = curve.points[0], curve.points[-1]
    return f"{curve.name}: {plane.form(y0)} at {x0:g}, {plane.form(y1)} at {x1:g}"


def _axes(plane: Plane) -> list[Markup]:
    parts = [drawn_text(0, 12, plane.up_title, kind="title")]
    base = HEIGHT - BOTTOM
    for tick in plane.up.ticks:
        y = plane.y(tick)
        parts += [drawn_line(LEFT - 4, WIDTH - RIGHT, y, y), drawn_text(LEFT - 8, y + 4, plane.form(tick), "end")]
    for tick in plane.across.ticks:
        x = plane.x(tick)
        parts += [drawn_line(x, x, _TOP, base + 4), drawn_text(x, base + 16, f"{tick:,g}", "middle")]
    return [*parts, drawn_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, plane.across_title, "middle", "title")]


def _turn(plane: Plane, name: str, x: float, row: int, low: bool) -> Markup:
    at = plane.x(x)
    left = at > WIDTH * 0.6
    y = HEIGHT - BOTTOM - 6 if low else _TOP + 11 + 13 * row
    label = drawn_text(at + (-5 if left else 5), y, name, "end" if left else "start", "value")
    return drawn_line(at, at, _TOP, HEIGHT - BOTTOM, "turn") + label


def _curve(plane: Plane, curve: Curve, k: int) -> Markup:
    at = [(plane.x(x), plane.y(y)) for x, y in curve.points]
    line = Markup('<polyline class="line" points="{}"/>').format(_joined(at))
    area = Markup("")
    if curve.band:
        xs = [x for x, _ in at]
        low = [(x, plane.y(band[0])) for x, band in zip(xs, curve.band, strict=True)]
        high = [(x, plane.y(band[1])) for x, band in zip(xs, curve.band, strict=True)]
        area = Markup('<polygon class="band" points="{}"/>').format(_joined([*low, *reversed(high)]))
    dots = Markup("").join(
        Markup('<circle class="mark" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
            f"{x:.1f}", f"{y:.1f}", 2, f"{one_line(curve.name)}: {plane.form(value)} at {where:,g}"
        )
        for (x, y), (where, value) in zip(at, curve.points, strict=True)
    )
    return Markup('<g class="c{}">{}{}{}</g>').format(k % COLOURS, area, line, dots)


def _joined(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _spot(plane: Plane, spot: Spot) -> Markup:
    x, low, high = plane.x(spot.x), plane.y(spot.low), plane.y(spot.high)
    said = f"{one_line(spot.name)}: {plane.form(spot.low)} to {plane.form(spot.high)} at {spot.x:.3g}"
    bar = Markup('<rect class="mark" x="{}" y="{}" width="5" height="{}"><title>{}</title></rect>').format(
        f"{x - 2.5:.1f}", f"{high:.1f}", f"{max(low - high, 3):.1f}", said
    )
    end = x > WIDTH * 0.75
    label = drawn_text(x + (-6 if end else 6), low + 10, spot.name, "end" if end else "start", "value")
    return Markup('<g class="c1">{}{}</g>').format(bar, label)


def _key(name: str, k: int, y: float) -> Markup:
    """A row of a legend: the line as it is drawn, and its name."""
    line = Markup('<polyline class="line" points="{},{} {},{}"/>').format(4, y + 8, 28, y + 8)
    text = drawn_text(36, y + 12, fitted(name, (WIDTH - 40) * 0.85), kind="value")
    return Markup('<g class="c{}">{}</g>{}').format(k % COLOURS, line, text)


def stacked_bars(
    rows: Mapping[str, Mapping[str, float]], limits: Mapping[str, float], form: Callable[[float], str], unit: float
) -> Markup:
    """A lying bar for each row, made of its parts, beside upright lines that are limits.

    Args:
        rows: the size of each part, by the row's name; parts of one name have one colour.
        limits: by what is written beside the line.
        form: of a size in texts. unit: what the axis counts in, such as 2**30.
    """
    names = list(dict.fromkeys(name for parts in rows.values() for name, size in parts.items() if size))
    totals = {row: sum(parts.values()) for row, parts in rows.items()}
    top = 4 + 13 * len(limits)
    base = top + len(rows) * 38
    scale = axis(0.0, max([*totals.values(), *limits.values()]) / unit, 5)

    def x(size: float) -> float:
        return RIGHT + (WIDTH - 2 * RIGHT) * scale.share(size / unit)

    parts: list[Markup] = []
    for tick in scale.ticks:
        at = x(tick * unit)
        parts += [drawn_line(at, at, top, base), drawn_text(at, base + 14, f"{tick:,g}", "middle")]
    for k, (row, sizes) in enumerate(rows.items()):
        parts += _stack(row, sizes, names, top + k * 38 + 19, x, form)
    parts += _limits(limits, base, x)
    texts = enumerate(f"{row}: {form(total)}" for row, total in totals.items())
    parts += [drawn_text(RIGHT, top + k * 38 + 14, text, kind="value") for k, text in texts]
    parts += [_swatch(name, k, base + 22) for k, name in enumerate(names)]
    words = "; ".join([f"{row}: {form(total)}" for row, total in totals.items()] + list(limits))
    return svg(parts, words, WIDTH, base + 26 + len(names) * LEGEND)


def _limits(limits: Mapping[str, float], base: float, x: Callable[[float], float]) -> list[Markup]:
    """An upright line for each, over the bars, and its name above them."""
    parts = []
    for k, (limit, size) in enumerate(limits.items()):
        at, end = x(size), x(size) > WIDTH / 2
        parts.append(drawn_line(at, at, 4 + 13 * k, base, "turn"))
        parts.append(drawn_text(at + (-5 if end else 5), 13 + 13 * k, limit, "end" if end else "start", "value"))
    return parts


def _stack(
    row: str,
    sizes: Mapping[str, float],
    names: Sequence[str],
    y: float,
    x: Callable[[float], float],
    form: Callable[[float], str],
) -> list[Markup]:
    """The parts of a bar, one beside the other."""
    parts, begin = [], 0.0
    for name, size in sizes.items():
        if size:
            left, right = x(begin), x(begin + size)
            shape = '<rect class="mark c{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>'
            place = (f"{left:.1f}", f"{y:.1f}", f"{right - left:.2f}", _BAR)
            said = f"{one_line(row)}, {name}: {form(size)}"
            parts.append(Markup(shape).format(names.index(name) % COLOURS, *place, said))
        begin += size
    return parts


def _swatch(name: str, k: int, y: float) -> Markup:
    """A row of a legend of colours."""
    box = Markup('<rect class="mark c{}" x="{}" y="{}" width="12" height="10"/>').format(
        k % COLOURS, RIGHT, y + k * LEGEND + 2
    )
    return box + drawn_text(RIGHT + 20, y + k * LEGEND + 11, name, kind="value")
