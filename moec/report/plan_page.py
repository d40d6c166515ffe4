"""The page of `moec plan`: one HTML file without external resources, for light and dark, narrow and printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from moec.planning.advice import advise
from moec.planning.estimate import Estimate, Situation
from moec.planning.question import Question
from moec.planning.step import Time
from moec.report.overview import Tile
from moec.report.plan_charts import (
    experts_chart,
    memory_chart,
    parts_chart,
    reading_chart,
    roofline_chart,
    settings,
    speed_chart,
)
from moec.report.plan_load import load_maps
from moec.report.rendering import environment
from moec.shown import count_of, size_of, span_of

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
_MOST = 6  # settings that have charts of their own
_ORIGINS = (
    ("parameters", "transformers builds the model without memory; they are counted", "exact"),
    ("weights", "every matrix in its format with scales and zero points; routers, norms, tables in 16 bits", "exact"),
    ("state", "rows of the key and value projections; windows cut, latents compressed", "exact, or not known"),
    ("activations, runtime", "the widest layer, 2,048 tokens at once; 1 GiB for the device's context", "rule of thumb"),
    ("dense twins", "the same layers with one network in place of each mixture", "paper models, never trained"),
)


def plan_page(
    found: Estimate,
    source: str = "",
    compiled: Sequence[tuple[str, str]] = (),
    served: Sequence[Table] = (),
    notes: Sequence[str] = (),
) -> str:
    """The page; every text of others is escaped.

    Args:
        found: the estimate.
        source: what the user called the model.
        compiled: titles and texts about what a compilation would do.
        served: tables about serving: title, columns and rows. notes: the same in words.
    """
    asked = Question(found)
    every = settings(asked)
    return (
        environment()
        .get_template("plan.html.j2")
        .render(
            shape=found.shape,
            source=source,
            summary=_summary(asked),
            tiles=_tiles(asked),
            advice=advise(found),
            facts=_facts(found),
            model_charts=[parts_chart(found.shape), *_known([experts_chart(asked)])],
            memory_chart=memory_chart(asked),
            lacking=_lacking(asked, len(every)),
            speed_charts=_speed_charts(asked),
            router_charts=_routers(asked),
            load=asked.load.name,
            tables=[*_tables(found), *served],
            notes=notes,
            compiled=compiled,
            origins=[*_ORIGINS, *_experts(asked), *_times(found)],
        )
    )


def _known(charts: Sequence[Markup | None]) -> list[Markup]:
    return [chart for chart in charts if chart is not None]


def _speed_charts(asked: Question) -> list[Markup]:
    drawn = _known([reading_chart(asked)])
    for setting in settings(asked)[:_MOST]:
        drawn += _known([speed_chart(asked, setting), roofline_chart(asked, setting)])
    return drawn


def _routers(asked: Question) -> list[Markup]:
    """How often each expert is taken, where that was measured."""
    if not asked.load.layers:
        return []
    odds = {m.module: asked.load.chances(place, m) for place, m in enumerate(asked.shape.mixtures)}
    return load_maps({module: [each / sum(layer) for each in layer] for module, layer in odds.items()})


def _lacking(asked: Question, drawn: int) -> str:
    """Why charts that a reader looks for are not there; empty where all are."""
    alone = [d.name for d in asked.devices if asked.format_on(d) is None]
    said = []
    if not asked.devices:
        said.append("No device was named, so there are no times: name some, such as --device h200,rtx4090.")
    if alone:
        one = f"One {' or '.join(alone)}"
        said.append(f"{one} does not hold it in any of these formats, or its times in them are not known.")
    if drawn > _MOST:
        said.append(f"{drawn - _MOST} more devices have their times in the table below only.")
    return " ".join(said)


def _summary(asked: Question) -> str:
    formats, devices = (", ".join(x.name for x in every) for every in (asked.formats, asked.devices))
    batches = ", ".join(f"{b:,}" for b in asked.batches)
    where = f"on {devices}" if devices else "on no device in particular"
    return f"Expected before anything is compiled: {formats} {where}, batch {batches}, {asked.context:,} tokens a text."


def _tiles(asked: Question) -> list[Tile]:
    shape, row = asked.shape, asked.found.situations[0]
    share = f"{count_of(shape.active)} active a token ({shape.active / shape.total:.0%})"
    tiles = [
        Tile("Parameters", count_of(shape.total), share if shape.mixtures else "all active"),
        Tile("Weights", size_of(row.memory.weights), f"in {row.format}"),
        Tile("State", size_of(row.memory.state / row.batch), f"a text of {row.context:,} tokens"),
    ]
    if not shape.states:
        tiles.pop()
    fastest = [s for s in asked.found.situations if s.decode_time]
    tiles += [_fit(s) for s in asked.found.situations[:1] if s.device]
    return tiles + [_speed(s, s.decode_time) for s in fastest[:1] if s.decode_time]


def _fit(s: Situation) -> Tile:
    needed = f"{s.devices} x {s.device}" if s.devices else f"no {s.device}"
    return Tile("Takes", needed, f"{size_of(s.memory.total)} at batch {s.batch:,} in {s.format}", s.devices == 1)


def _speed(s: Situation, time: Time) -> Tile:
    span = span_of(s.batch / time.high, s.batch / time.low)
    return Tile("Speed", span, f"tokens/s expected at batch {s.batch:,} on one {s.device} in {s.format}")


def _facts(found: Estimate) -> list[tuple[str, str]]:
    shape = found.shape
    rows = [
        ("parameters", f"{shape.total:,}"),
        ("active a token", f"{shape.active:,}; without the input embedding {shape.active_without_embedding:,}"),
    ]
    kinds = Counter((m.experts, m.top_k, m.hidden, m.intermediate) for m in shape.mixtures)
    for (experts, top_k, hidden, intermediate), layers in sorted(kinds.items()):
        rows.append(("mixtures", f"{layers} of {experts} experts, {top_k} a token, {hidden} → {intermediate}"))
    if not shape.mixtures:
        rows.append(("mixtures", "none: it is dense"))
    if shape.multi_token:
        rows.append(("apart from it", f"{count_of(shape.multi_token)} in layers for multi-token prediction"))
    states = Counter(s.kind for s in shape.states)
    rows += [("state", f"{kind} in {layers} layers") for kind, layers in states.items()]
    if found.equivalent:
        cost, quality = count_of(found.equivalent.by_cost), count_of(found.equivalent.by_quality)
        rows.append(("like a dense model of", f"{cost} in the cost of serving, {quality} in quality by folklore"))
    return [*rows, *(("note", what) for what in shape.notes), *(("not known", what) for what in shape.unknown)]


def _tables(found: Estimate) -> list[Table]:
    shape = found.shape
    parts = [(p, f"{n:,}", f"{n / shape.total:.2%}") for p, n in shape.parts().items() if n]
    tables: list[Table] = [
        ("Parameters", ("part", "number", "share"), parts),
        ("Situations", _HEAD, [_row(s) for s in found.situations]),
    ]
    if found.versus is not None:
        beside = ("batch", f"{shape.name} reads a token", f"{found.versus.name} reads a token", "ratio")
        both = [(f"{b.batch:,}", *map(size_of, b.bytes), f"{b.bytes[0] / b.bytes[1]:.2f}") for b in found.beside]
        tables.append((f"Beside {found.versus.name}", beside, both))
    return tables


_HEAD = (
    "format", "batch", "device", "needed", "weights", "state", "in all", "step reads", "experts", "tokens/s",
    "prompt", "bound by",
)  # fmt: skip


def _row(s: Situation) -> tuple[str, ...]:
    step, memory = s.decode or s.prompt, s.memory
    decode, prompt = s.decode_time, s.prompt_time
    needed = "" if s.device is None else str(s.devices) if s.devices else "none fits"
    held = map(size_of, (memory.weights, memory.state, memory.total))
    return (
        s.format, f"{s.batch:,}", s.device or "any", needed, *held,
        size_of(step.bytes), f"{step.experts:.1f}" if step.experts else "–",
        span_of(s.batch / decode.high, s.batch / decode.low) if decode else "–",
        f"{span_of(prompt.low, prompt.high)} s" if prompt else "–",
        ", ".join(dict.fromkeys(t.bound for t in (decode, prompt) if t)) or "–",
    )  # fmt: skip


def _experts(asked: Question) -> list[tuple[str, str, str]]:
    """Where the number of experts that a step reads comes from."""
    if not asked.shape.mixtures:
        return []
    how = "E (1 - (1 - k/E)^B): every expert as likely"
    how = how if asked.load.uniform else f"the sum of 1 - (1 - p)^B, with each expert's p from {asked.load.name}"
    return [("experts of a step", how, "texts touch fewer: their tokens are not independent")]


def _times(found: Estimate) -> list[tuple[str, str, str]]:
    """Where the times come from, each origin once."""
    times = [t for s in found.situations for t in (s.decode_time, s.prompt_time) if t]
    return [("times", origin, "an interval") for origin in dict.fromkeys(t.origin for t in times)]
