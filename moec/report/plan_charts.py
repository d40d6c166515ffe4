"""The charts of a plan's page: what is drawn of an estimate, with which axes and titles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from moec.planning.devices import Device
from moec.planning.formats import Format, stored_bytes
from moec.planning.load import UNIFORM, Load
from moec.planning.memory import Memory
from moec.planning.on_cpu import ThisMachine
from moec.planning.question import Question, listed
from moec.planning.shape import Part, Shape
from moec.planning.step import Step, Time, bits_computed
from moec.planning.twins import changes
from moec.planning.versus import BATCHES
from moec.report.curves import Curve, Plane, Spot, curve_chart, powers, stacked_bars
from moec.report.drawing import LogAxis, figure, lying_bars
from moec.shown import count_of, size_of

MANY = 12  # situations that are drawn; all are in the table
_TABLES: tuple[Part, ...] = ("input embedding", "output head")


@dataclass(frozen=True)
class Setting:
    """A device, and a format in which one such device holds the smallest batch that is asked for."""

    device: Device
    format: Format

    @property
    def words(self) -> str:
        """For titles."""
        return f"{self.device.name}, {self.format.name}"


def settings(asked: Question) -> list[Setting]:
    """Each device that holds the model alone, in the first format in which it does."""
    found = ((device, asked.format_on(device)) for device in asked.devices)
    return [Setting(device, format) for device, format in found if format is not None]


def parts_chart(shape: Shape) -> Markup:
    """Parameters by part, as lying bars; a token uses a share of the routed experts."""
    counts: dict[str, float] = {part: float(n) for part, n in shape.parts().items() if n}
    note = f"{count_of(shape.active)} of {count_of(shape.total)} are active a token"
    return figure("Parameters by part", note, lying_bars(counts, count_of))


def memory_chart(asked: Question) -> Markup:
    """What each situation takes, by what holds it, beside the devices' memory."""
    rows = dict(_memories(asked))
    limits = {f"one {d.name}, {size_of(d.memory_bytes)}": float(d.memory_bytes) for d in asked.devices}
    note = f"GiB, with {asked.context:,} tokens of each text"
    note += f"; {len(rows) - MANY} more in the table" if len(rows) > MANY else ""
    drawn = dict(list(rows.items())[:MANY])
    return figure("Memory", note, stacked_bars(drawn, limits, size_of, 2**30))


def _memories(asked: Question) -> Iterator[tuple[str, dict[str, float]]]:
    """Each situation once; a device other than this machine changes nothing of it."""
    formats = {format.name: format for format in asked.formats}
    devices = {device.name: device for device in asked.devices}
    for s in asked.found.situations:
        device = devices.get(s.device or "")
        here = isinstance(device, ThisMachine)
        format = asked.held(formats[s.format], device) if device else formats[s.format]
        stored = stored_bytes(asked.packed(asked.shape, format).tensors, format)
        yield f"{s.format}, batch {s.batch:,}{f', {s.device}' if here else ''}", _by_holder(s.memory, stored)


def _by_holder(memory: Memory, stored: Mapping[Part, int]) -> dict[str, float]:
    routed, tables = stored.get("routed experts", 0), sum(stored.get(part, 0) for part in _TABLES)
    beside = memory.activations + memory.logits + memory.runtime
    return {
        "routed experts": float(routed),
        "other layers": float(memory.weights - routed - tables),
        "state of the texts": float(memory.state),
        "embedding and output head": float(tables),
        "activations, logits, runtime": float(beside),
    }


def roofline_chart(asked: Question, setting: Setting) -> Markup:
    """What a device can compute at so many FLOPs a byte (Williams et al. 2009), and where decoding and a prompt are."""
    device, format = setting.device, setting.format
    ceiling, rate = device.flops(bits_computed(format)) / 1e12, device.bandwidth / 1e3
    spots = [_spot(name, step, time) for name, step, time in _steps(asked, setting) if time]
    ridge = ceiling / rate
    low, high = min([s.x for s in spots] + [ridge / 4]), max([s.x for s in spots] + [ridge * 4])
    across = powers(low, high, 2)
    ends = (across.low, min(max(ridge, across.low), across.high), across.high)
    roof = Curve("what the data sheet allows", tuple((x, min(ceiling, x * rate)) for x in sorted(set(ends))))
    least = min(s.low for s in spots)
    plane = Plane(across, LogAxis.over(min(least, across.low * rate), ceiling), "FLOPs a byte read", "TFLOP/s")
    drawn = curve_chart([roof], plane, spots, {f"ridge, {ridge:,.0f} FLOPs a byte": ridge})
    note = "each bar: from the lowest to the highest of what is expected; left of the ridge reading is the limit"
    return figure(f"Roofline, {setting.words}", note, drawn)


def _steps(asked: Question, setting: Setting) -> Iterator[tuple[str, Step, Time | None]]:
    device, format = setting.device, setting.format
    for batch in asked.batches[:6] if asked.shape.states else ():
        yield f"batch {batch:,}", asked.step(asked.shape, batch, format), asked.time(asked.shape, batch, device, format)
    first = asked.batches[0]
    yield "prompt", asked.prompt(asked.shape, first, format), asked.prompt_time(first, device, format)


def _spot(name: str, step: Step, time: Time) -> Spot:
    return Spot(name, step.flops / step.bytes, step.flops / time.high / 1e12, step.flops / time.low / 1e12)


def speed_chart(asked: Question, setting: Setting) -> Markup | None:
    """Tokens a second by batch, of the model and of those that it is held against, as far as one device holds each;
    None for what writes no text."""
    device, format = setting.device, setting.format

    def curve(name: str, shape: Shape, banded: bool) -> Curve | None:
        fitting = [b for b in BATCHES if asked.memory(shape, b, format, device).devices(device) == 1]
        times = [(b, t) for b in fitting if (t := asked.time(shape, b, device, format))]
        points = tuple((float(b), b / math.sqrt(t.low * t.high)) for b, t in times)
        band = tuple((b / t.high, b / t.low) for b, t in times) if banded else ()
        return Curve(name, points, band) if points else None

    if not asked.shape.states:
        return None
    named = [(asked.shape.name, asked.shape), *((r.short, r.shape) for r in asked.rivals)]
    curves = [c for k, (name, shape) in enumerate(named) if (c := curve(name, shape, k == 0))]
    most = max(x for c in curves for x, _ in c.points)
    turned = [at for at in _turns(asked, partial(asked.seconds, device=device, format=format)) if at <= most]
    note = "new tokens of all texts; shaded: from the lowest to the highest that is expected"
    drawn = curve_chart(curves, _by_batch(curves, most, "tokens/s"), (), _marks(turned))
    return figure(f"Speed by batch, {setting.words}", _note(asked, note, turned), drawn)


def reading_chart(asked: Question) -> Markup | None:
    """Bytes that a token makes a step read, by batch; None for what writes no text."""
    if not asked.shape.states:
        return None
    named = [(asked.shape.name, asked.shape), *((r.short, r.shape) for r in asked.rivals)]
    curves = [
        Curve(name, tuple((float(b), asked.bytes_a_token(shape, b) / 1e9) for b in BATCHES)) for name, shape in named
    ]
    turned = _turns(asked, asked.bytes_a_token)
    drawn = curve_chart(curves, _by_batch(curves, BATCHES[-1], "GB a token"), (), _marks(turned))
    return figure(f"Bytes read for a token, {asked.format.name}", _note(asked, "weights and state", turned), drawn)


def _turns(asked: Question, cost: Callable[[Shape, int], float]) -> list[int]:
    """Where the model and the last of those that it is held against change places."""
    if not asked.rivals:
        return []
    rival = asked.rivals[-1].shape
    return changes(lambda b: cost(asked.shape, b), lambda b: cost(rival, b))


def _marks(turned: Sequence[int]) -> dict[str, float]:
    return {f"turns at batch {batch:,}": float(batch) for batch in turned}


def _note(asked: Question, note: str, turned: Sequence[int]) -> str:
    if not asked.rivals:
        return note
    other = asked.rivals[-1].short
    if turned:
        return f"{note}; the model and the other ({other}) change places at batch {listed(list(turned))}"
    return f"{note}; the model and the other ({other}) never change places"


def _by_batch(curves: Sequence[Curve], most: float, title: str) -> Plane:
    values = [y for c in curves for _, y in c.points] + [y for c in curves for band in c.band for y in band]
    up = LogAxis.over(min(values), max(values))
    return Plane(powers(1, max(most, 2)), up, "batch (texts at once)", title, _figure)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def experts_chart(asked: Question) -> Markup | None:
    """How many of its experts a layer touches by batch, in the mean; None for a dense model."""
    mixtures = asked.shape.mixtures
    if not mixtures:
        return None

    def curve(load: Load) -> Curve:
        touched = [sum(load.distinct(place, m, b) for place, m in enumerate(mixtures)) / len(mixtures) for b in BATCHES]
        return Curve(load.name, tuple(zip(map(float, BATCHES), touched, strict=True)))

    curves = [curve(UNIFORM), *([] if asked.load.uniform else [curve(asked.load)])]
    values = [y for c in curves for _, y in c.points]
    up = LogAxis.over(min(values), max(values))
    plane = Plane(powers(1, BATCHES[-1]), up, "batch (texts at once)", "experts", _figure)
    note = (
        f"{mixtures[-1].experts} experts, {mixtures[-1].top_k} a token; independent tokens, so that texts touch fewer"
    )
    return figure("Experts that a layer reads", note, curve_chart(curves, plane))
