"""The charts of a report's page: what is drawn, with which axes and titles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from moec.proof.agreement import Agreement, BlockAgreement
from moec.proof.coverage import ExpertLoad
from moec.proof.damage_by_cause import ExpertShift
from moec.report.drawing import Axis, axis, bar_chart, dots, figure, heat_map, line_chart, lying_bars
from moec.report.speed import Speed
from moec.shown import size_of

_MANY = 6  # blocks that have a chart each; of more, one map
UNITS = {"forward": "a forward pass", "prefill": "the first new token", "decode": "each further token"}


def size_chart(sizes: Mapping[str, float]) -> Markup:
    """Bytes before and after, as lying bars."""
    return figure("Size", "weights of the model, and the engine's files", lying_bars(sizes, size_of))


def layer_charts(inside: Agreement) -> list[Markup]:
    """Over the layers: the error, and the agreement of the routers' choices; nothing of what differs nowhere, see
    `equal_inside`."""
    found = []
    if any(layer.relative for layer in inside.layers):
        errors = [layer.relative for layer in inside.layers]
        scale = axis(0.0, max([e for e in errors if math.isfinite(e)], default=0.0))
        drawn = line_chart(
            {"error": errors}, [e.module for e in inside.layers], scale, "‖d‖ / ‖untouched‖", "{:.2g}".format, "{:.2e}"
        )
        found.append(figure("Error of each layer", "with all that the layers before it added", drawn))
    if any(b.identical < 1 for b in inside.blocks):
        series = {
            "the same experts": [b.shared for b in inside.blocks],
            "the same sets": [b.identical for b in inside.blocks],
        }
        names = [b.module for b in inside.blocks]
        note = "share of the experts, and dashed: of the tokens whose whole set is the same"
        found.append(figure("Choices of the routers", note, _shares(series, names)))
    return found


def equal_inside(inside: Agreement) -> str:
    """What differs nowhere, in a sentence; empty where everything differs somewhere."""
    said = []
    if inside.layers and not any(layer.relative for layer in inside.layers):
        said.append("The output of every layer is the same there.")
    if inside.blocks and all(b.identical == 1 for b in inside.blocks):
        said.append("Every token goes to the same experts there.")
    return " ".join(said)


def load_charts(loads: Sequence[ExpertLoad]) -> list[Markup]:
    """The tokens of each expert in the proof: a bar chart a block, of many blocks a map."""
    if len(loads) > _MANY:
        rows = {load.place: load.assignments for load in loads}
        note = "darker: a larger share of its block's most used; red: none"
        return [figure("Tokens of each expert", note, heat_map(rows, "expert"))]
    top = max((n for load in loads for n in load.assignments), default=0)  # one scale, so that blocks can be compared
    return [figure(load.place, _reached(load), bar_chart(load.assignments, top=top)) for load in loads]


def _reached(load: ExpertLoad) -> str:
    missed = f", not reached: {', '.join(map(str, load.missed))}" if load.missed else ""
    return f"{load.reached} of {len(load.assignments)} experts reached{missed}"


def text_load_charts(blocks: Sequence[BlockAgreement]) -> list[Markup]:
    """The tokens of each expert on a text, beside the untouched model's."""
    if len(blocks) > _MANY:
        rows = {b.module: b.load_after for b in blocks}
        return [figure("Tokens of each expert on the text", "darker: more; red: none", heat_map(rows, "expert"))]
    note = "tokens on the text; lines: in the untouched model"
    top = max((n for b in blocks for n in (*b.load, *b.load_after)), default=0)
    return [figure(b.module, note, bar_chart(b.load_after, b.load, top)) for b in blocks]


def damage_chart(shift: ExpertShift) -> Markup:
    """What the damage comes from, as lying bars."""
    causes = {"changed weights alone": shift.weights, "changed choices alone": shift.routes, "both": shift.both}
    note = f"KL divergence from the untouched model in nats a token, on {shift.tokens:,} tokens"
    return figure("What the damage comes from", note, lying_bars(causes, "{:.3g}".format))


def calibration_charts(steps: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """A chart for each pass that fitted routers: the agreement of their choices before and after, over the blocks."""
    found = []
    for step in steps:
        needed = {"identical_before", "identical_after", "module"}
        blocks = [b for b in (step.get("facts") or {}).get("blocks", ()) if needed <= set(b)]
        if blocks:
            series = {
                "as it came": [float(b["identical_before"]) for b in blocks],
                "fitted": [float(b["identical_after"]) for b in blocks],
            }
            drawn = _shares(series, [b["module"] for b in blocks])
            found.append(figure(f"The same sets of experts, {step['name']}", "as it came; dashed: fitted", drawn))
    return found


def speed_charts(speeds: Sequence[Speed]) -> list[Markup]:
    """Every time that was measured, for each phase: a row a measurement, a dot a time."""
    phases = dict.fromkeys(name for speed in speeds for name in speed.phases)
    found = []
    for phase in phases:
        rows = {
            f"{s.what} ({s.at[:10]})" if len(speeds) > 1 else s.what: s.phases[phase].times_ms
            for s in speeds
            if phase in s.phases and s.phases[phase].times_ms
        }
        if rows:
            found.append(run_chart(phase, rows))
    return found


def run_chart(phase: str, rows: Mapping[str, Sequence[float]]) -> Markup:
    """The times of one phase in milliseconds, a row a name."""
    return figure(f"Time of {UNITS.get(phase, phase)}", "a dot a time; line: the median", dots(rows, "ms"))


def _shares(series: Mapping[str, Sequence[float]], names: Sequence[str]) -> Markup:
    low = min(0.9, math.floor(10 * min(map(min, series.values()))) / 10)
    ticks = tuple(low + (1 - low) * k / 4 for k in range(5))
    return line_chart(series, names, Axis(low, 1.0, ticks), "share", "{:.1%}".format, "{:.2%}")
