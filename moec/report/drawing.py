"""Charts as inline SVG: lines, bars, rows of dots and maps, each with axes, a title, and its content in words.

No library: those that write SVG either bring scripts and fixed colours (a page must follow the reader's light or dark
screen and his printer, and load nothing) or hundreds of megabytes. What is drawn here is rectangles and lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup, escape

from moec.shown import one_line

WIDTH, HEIGHT = 440, 190  # of a chart in its own units; it grows and shrinks with its column
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 22, 36  # room for the axes' figures and titles
ROW, LEVELS = 30, 8  # height of a row of dots or a lying bar; shades of a map
_MUCH = 5  # times the smallest value from which on a linear axis would show the large ones only
_LETTER = 6.6  # width of a letter at 11 px, so that names get their room


@dataclass(frozen=True)
class Axis:
    """From where to where an axis goes, and where it has figures."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Where a value is, from 0 to 1; what is not finite or too large is at the end, what is too small at the
        start."""
        if math.isnan(value):
            return 1.0
        return min(1.0, max(0.0, (value - self.low) / ((self.high - self.low) or 1.0)))


@dataclass(frozen=True)
class LogAxis(Axis):
    """One on which equal ratios are equally far apart; for values above 0."""

    @classmethod
    def over(cls, low: float, high: float) -> LogAxis:
        """From the round figure (1, 2 or 5 times a power of ten) below `low` to that above `high`."""
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        marks = [k * 10.0**power for power in powers for k in (1, 2, 5)]
        first = max([k for k, mark in enumerate(marks) if mark <= low * 1.0001], default=0)
        last = min([k for k, mark in enumerate(marks) if mark >= high * 0.9999], default=len(marks) - 1)
        shown = marks[first : last + 1]
        thin = shown if len(shown) <= 8 else [m for m in shown if m in (shown[0], shown[-1]) or m in marks[::3]]
        return cls(shown[0], shown[-1], tuple(thin))

    def share(self, value: float) -> float:
        low, high = math.log(self.low), math.log(self.high)
        return min(1.0, max(0.0, (math.log(value) - low) / ((high - low) or 1.0)))


def axis(low: float, high: float, most: int = 4) -> Axis:
    """An axis with round figures (1, 2 or 5 times a power of ten), that ends at the last that is needed."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        high = low + (abs(low) or 1.0) if math.isfinite(low) else 1.0
        low = low if math.isfinite(low) else 0.0
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = tuple(k * step for k in range(first, last + 1))
    return Axis(marks[0], marks[-1], marks)


def figure(title: str, note: str, svg: Markup) -> Markup:
    """A drawing under its title."""
    small = Markup(" <small>{}</small>").format(one_line(note)) if note else Markup("")
    return Markup("<figure><figcaption>{}{}</figcaption>{}</figure>").format(one_line(title), small, svg)


def svg(parts: Iterable[Markup], words: str, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """A drawing of parts; `words` say what it shows to who does not see it."""
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, one_line(words), Markup("").join(parts)
    )


def bar_chart(values: Sequence[int], before: Sequence[int] = (), top: int = 0, width: int = WIDTH) -> Markup:
    """Standing bars, an expert each: how many tokens it got. An empty one is marked. `before`: lines across the bars;
    `top`: what the axis has to reach."""
    scale = axis(0, max([*values, *before, top, 1]), 3)
    step = (width - LEFT - RIGHT) / max(1, len(values))
    wide = step * 0.8 if step > 3 else step
    parts = [_frame(scale, "tokens", "expert", width, _thousands), *_numbers(len(values), step, width)]
    for e, count in enumerate(values):
        x, tall = LEFT + e * step + (step - wide) / 2, _ROOM * scale.share(count)
        said = f"expert {e}: {count:,} tokens" + (f", untouched {before[e]:,}" if before else "")
        kind = "" if count else ' class="missed"'
        y = TOP + _ROOM - max(tall, 2)
        parts.append(_rect(x, y, wide, max(tall, 2), kind, said))
        if before:
            parts.append(_rect(x, TOP + _ROOM * (1 - scale.share(before[e])) - 1, wide, 2, ' class="before"'))
    return svg(parts, f"tokens of each expert: {span_text(values)}", width)


def line_chart(
    series: Mapping[str, Sequence[float]],
    names: Sequence[str],
    scale: Axis,
    title: str,
    form: Callable[[float], str],
    exact: str,
) -> Markup:
    """A line for each series over named places, such as layers; the second is dashed. `form` writes the axis's figures,
    `exact` those of the points."""
    short, below = short_names(names)
    short = [fitted(name, WIDTH / 4) for name in short]
    step = (WIDTH - LEFT - RIGHT) / max(1, len(names))
    parts = [_frame(scale, title, below, WIDTH, form)]
    every = max(1, math.ceil((max(map(len, short)) + 1.5) * _LETTER * len(names) / (WIDTH - LEFT - RIGHT - 20)))
    parts += [
        drawn_text(LEFT + (k + 0.5) * step, _BASE + 14, n, "middle") for k, n in enumerate(short) if k % every == 0
    ]
    for values in series.values():
        points = [(LEFT + (k + 0.5) * step, TOP + _ROOM * (1 - scale.share(v))) for k, v in enumerate(values)]
        line = Markup('<polyline points="{}"/>').format(" ".join(f"{x:.1f},{y:.1f}" for x, y in points))
        dots = [
            Markup('<circle cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
                f"{x:.1f}", f"{y:.1f}", 2.5 if len(names) < 60 else 1.5, f"{one_line(name)}: {exact.format(v)}"
            )
            for (x, y), name, v in zip(points, names, values, strict=True)
        ]
        parts.append(Markup('<g class="series">{}{}</g>').format(line, Markup("").join(dots)))
    return svg(parts, "; ".join(f"{of}: {span_text(v, exact)}" for of, v in series.items()))


def lying_bars(values: Mapping[str, float], form: Callable[[float], str]) -> Markup:
    """Lying bars, one below the other, their names above them; the longest stands for the largest finite value."""
    scale = Axis(0.0, max([v for v in values.values() if math.isfinite(v)], default=0.0) or 1.0, ())
    room = WIDTH - max(len(form(v)) for v in values.values()) * _LETTER - 12
    parts = []
    for k, (name, value) in enumerate(values.items()):
        y, wide = k * (ROW + 8), max(1.0, room * scale.share(value) if value == value else 0.0)
        parts += [drawn_text(0, y + 12, fitted(name, WIDTH)), _rect(0, y + 17, wide, 14, "", f"{name}: {form(value)}")]
        parts.append(drawn_text(wide + 6, y + 28, form(value), kind="value"))
    words = "; ".join(f"{name}: {form(v)}" for name, v in values.items())
    return svg(parts, words, WIDTH, len(values) * (ROW + 8))


def dots(rows: Mapping[str, Sequence[float]], unit: str) -> Markup:
    """A row for each name and a dot for each value, the median as a line: what a run varies by is seen beside what two
    rows differ by. Values are above 0; the axis is logarithmic where they differ much."""
    every = [v for values in rows.values() for v in values]
    scale = LogAxis.over(min(every), max(every)) if max(every) > _MUCH * min(every) else axis(min(every), max(every), 5)
    room, height = WIDTH - 2 * RIGHT, dots_height(len(rows))
    parts, base = [], height - BOTTOM
    for tick in scale.ticks:
        x = RIGHT + room * scale.share(tick)
        parts += [drawn_line(x, x, 0, base), drawn_text(x, base + 14, f"{tick:g}", "middle")]
    beside = f"{unit}, logarithmic" if isinstance(scale, LogAxis) else unit
    parts.append(drawn_text(WIDTH / 2, base + 30, beside, "middle", "title"))
    for k, (name, values) in enumerate(rows.items()):
        y, middle = k * (ROW + 14), median(values)
        parts.append(drawn_text(0, y + 12, fitted(name, WIDTH), kind="value"))
        for n, value in enumerate(values):
            cx, cy = RIGHT + room * scale.share(value), y + 20 + (n * 7 % 16)
            parts.append(Markup('<circle class="run" cx="{}" cy="{}" r="2.5"/>').format(f"{cx:.1f}", cy))
        x = RIGHT + room * scale.share(middle)
        parts.append(drawn_line(x, x, y + 16, y + 40, "median"))
    words = "; ".join(f"{name}: {span_text(v, '{:.3g}')} {unit}" for name, v in rows.items())
    return svg(parts, words, WIDTH, height)


def dots_height(rows: int) -> int:
    """Of such a chart."""
    return rows * (ROW + 14) + BOTTOM + 4


def heat_map(rows: Mapping[str, Sequence[float]], below: str) -> Markup:
    """A row for each name and a field for each number, darker where it is a larger share of its row's largest; a 0 is
    marked. One path a shade: a model has thousands of fields."""
    short, beside = short_names(list(rows))
    tall, across = max(6, min(18, 260 // len(rows))), max(map(len, rows.values()))
    step, height = (WIDTH - LEFT - RIGHT) / across, TOP + len(rows) * tall + BOTTOM
    paths: dict[str, list[str]] = {}
    for k, values in enumerate(rows.values()):
        most = max([*values, 1])
        for e, value in enumerate(values):
            shade = f"s{math.ceil(LEVELS * value / most)}" if value else "missed"
            paths.setdefault(shade, []).append(
                f"M{LEFT + e * step:.1f} {TOP + k * tall}h{step * 0.92:.1f}v{tall - 1}h-{step * 0.92:.1f}z"
            )
    parts = [Markup('<path class="{}" d="{}"/>').format(shade, "".join(p)) for shade, p in sorted(paths.items())]
    every = max(1, math.ceil(13 / tall))
    parts += [
        drawn_text(LEFT - 6, TOP + k * tall + tall / 2 + 4, fitted(n, LEFT - 6), "end")
        for k, n in enumerate(short)
        if k % every == 0
    ]
    parts += [
        drawn_text(0, 12, fitted(beside, WIDTH), kind="title"),
        *_numbers(across, step, WIDTH, TOP + len(rows) * tall),
    ]
    parts.append(drawn_text(LEFT + (WIDTH - LEFT - RIGHT) / 2, height - 6, below, "middle", "title"))
    return svg(parts, f"{len(rows)} rows of up to {across} numbers", WIDTH, height)


_ROOM = HEIGHT - TOP - BOTTOM
_BASE = TOP + _ROOM


def short_names(names: Sequence[str]) -> tuple[list[str], str]:
    """Names without what all of them begin and end with, and that, with an N in the place of what differs."""
    if len(set(names)) < 2:
        return list(names), ""
    parts = [name.split(".") for name in names]
    first = _alike(parts)
    last = _alike([p[first:][::-1] for p in parts])
    short = [".".join(p[first : len(p) - last]) for p in parts]
    if not all(short):
        return list(names), ""
    return short, ".".join([*parts[0][:first], "N", *parts[0][len(parts[0]) - last :]])


def _alike(parts: Sequence[Sequence[str]]) -> int:
    """With how many equal elements all lists begin."""
    return next((k for k, same in enumerate(zip(*parts, strict=False)) if len(set(same)) > 1), min(map(len, parts)))


def span_text(values: Iterable[float], form: str = "{:,}") -> str:
    """What a chart shows, in words for those who don't see it: the smallest and the largest value."""
    known = list(values)
    low, high = form.format(min(known)), form.format(max(known))
    return low if low == high else f"{low} to {high}"


def _frame(scale: Axis, title: str, below: str, width: int, form: Callable[[float], str]) -> Markup:
    parts = [
        drawn_text(0, 12, title, kind="title"),
        drawn_text((LEFT + width - RIGHT) / 2, HEIGHT - 4, fitted(below, width - LEFT), "middle", "title"),
    ]
    for tick in scale.ticks:
        y = TOP + _ROOM * (1 - scale.share(tick))
        parts += [drawn_line(LEFT - 4, width - RIGHT, y, y), drawn_text(LEFT - 8, y + 4, form(tick), "end")]
    return Markup("").join(parts)


def _numbers(count: int, step: float, width: int, base: float = _BASE) -> list[Markup]:
    """Figures below some of many columns."""
    every = max(1, math.ceil(len(str(count)) * 1.6 * _LETTER * count / (width - LEFT - RIGHT)))
    return [drawn_text(LEFT + (k + 0.5) * step, base + 14, str(k), "middle") for k in range(0, count, every)]


def _rect(x: float, y: float, width: float, height: float, kind: str, said: str = "") -> Markup:
    title = Markup("<title>{}</title>").format(one_line(said)) if said else ""
    return Markup('<rect x="{}" y="{}" width="{}" height="{}"{}>{}</rect>').format(
        f"{x:.1f}", f"{y:.1f}", f"{width:.1f}", f"{height:.1f}", Markup(kind), title
    )


def drawn_line(x1: float, x2: float, y1: float, y2: float, kind: str = "grid") -> Markup:
    """A line from one point to another."""
    form = '<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>'
    return Markup(form).format(kind, *(f"{n:.1f}" for n in (x1, x2, y1, y2)))


def fitted(text: str, room: float) -> str:
    """The end of a text, which says more of a name than its beginning does, as far as it has room."""
    letters = max(3, int(room / _LETTER))
    return text if len(text) <= letters else f"…{text[1 - letters :]}"


def drawn_text(x: float, y: float, text: str, anchor: str = "start", kind: str = "tick") -> Markup:
    """A text at a point: `tick` for figures of axes, `title` for what they mean, `value` for what is read first."""
    form = '<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>'
    return Markup(form).format(kind, f"{x:.1f}", f"{y:.1f}", anchor, escape(one_line(text)))


def _thousands(value: float) -> str:
    return f"{value:,.0f}" if value < 1e5 else f"{value / 1e3:,.0f}k"
