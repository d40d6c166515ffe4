"""What a question to `moec plan` comes to, and one sentence of the answer: what the rules of advice share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from moec.planning.costs import memory_on
from moec.planning.devices import Device
from moec.planning.estimate import Estimate
from moec.planning.formats import Format, find_format, recipe_format, with_state
from moec.planning.load import UNIFORM, Load
from moec.planning.memory import Memory
from moec.planning.on_cpu import any_device, held_on
from moec.planning.pace import decode_time, prompt_time, timed
from moec.planning.shape import Shape
from moec.planning.step import Step, Time, decode_step, prompt_step
from moec.planning.twins import Rival, rivals
from moec.shown import count_of


@dataclass(frozen=True)
class Advice:
    """One sentence.

    Attributes:
        rule: which rule it follows, see `moec.planning.advice.RULES`.
        verdict: the answer in a word or two: `mixture`, `memory-bound`, `does not fit`.
        text: the sentence; it holds the figures.
        figures: these by name: bytes, parameters, batches and ratios.
    """

    rule: str
    verdict: str
    text: str
    figures: dict[str, float]


class Question:
    """A question, for the rules.

    Attributes:
        found: its answer in figures. shape: of the model. kind: `mixture` or `model`, for sentences.
        formats, devices: that were asked for.
        batches: sorted. context: tokens behind a text. load: how often experts are taken.
    """

    def __init__(self, found: Estimate) -> None:
        rows = found.situations
        self.found, self.shape = found, found.shape
        self.kind = "mixture" if found.shape.mixtures else "model"
        names = dict.fromkeys(s.format for s in rows)
        plain = [recipe_format(name) if name in found.packed else find_format(name) for name in names]
        self.formats = [with_state(format, found.state) for format in plain]
        self.devices = [any_device(name) for name in dict.fromkeys(s.device for s in rows) if name]
        self.batches = sorted({s.batch for s in rows})
        self.context = rows[0].context
        self.load = found.serving.load if found.serving else UNIFORM

    # ------------------------------------------------------------------ whom it is held against, and in what
    @cached_property
    def rivals(self) -> tuple[Rival, ...]:
        """Whom it is held against, see `moec.planning.twins.rivals`; only what writes text as it does."""
        found = rivals(self.shape, self.found.versus) if self.shape.states else ()
        return tuple(rival for rival in found if rival.shape.states)

    @cached_property
    def fitting(self) -> tuple[Device, Format] | None:
        """The first device that holds it alone, and the format; None where none is asked for or none does."""
        found = ((device, self.format_on(device)) for device in self.devices)
        return next(((device, format) for device, format in found if format), None)

    @property
    def format(self) -> Format:
        """The one that models are compared in: the first that one device holds, else the first."""
        return self.fitting[1] if self.fitting else self.formats[0]

    @property
    def measure(self) -> str:
        """What `cost` is, for a sentence."""
        if self.fitting is None:
            return f"by the bytes read in {self.format.name}"
        device, format = self.fitting
        return f"by the time on {device.name} in {format.name}"

    def format_on(self, device: Device) -> Format | None:
        """The first of the formats in which one device holds the smallest batch and its times are known, as this device
        holds it; None where there is none."""
        batch = self.batches[0]
        for format in self.formats:
            held = self.held(format, device)
            fits = self.memory(self.shape, batch, held, device).devices(device) == 1
            if fits and self.prompt_time(batch, device, held):
                return held
        return None

    # ------------------------------------------------------------------ what it costs
    def held(self, format: Format, device: Device) -> Format:
        """See `held_on`."""
        return held_on(format, device)

    def packed(self, shape: Shape, format: Format) -> Shape:
        """The model, the other one, or a dense twin, as a format stores it: a recipe packs each tensor in its
        own way."""
        recipe = self.found.packed.get(format.name)
        if self.found.versus is shape:
            return self.found.packed_versus.get(format.name, shape)
        if recipe is None:
            return shape
        if shape is self.shape:
            return recipe
        place = [rival.shape for rival in self.rivals].index(shape)
        if (format.name, place) not in self._twins:
            self._twins[format.name, place] = rivals(recipe)[place].shape
        return self._twins[format.name, place]

    @cached_property
    def _twins(self) -> dict[tuple[str, int], Shape]:
        return {}

    def _load(self, shape: Shape) -> Load:
        """A measured load is of this model alone."""
        return self.load.elsewhere() if shape is self.found.versus else self.load

    def step(self, shape: Shape, batch: int, format: Format | None = None, rows: int = 1) -> Step:
        """A token for each of so many texts, or `rows` tokens of each, as when a draft is checked."""
        format = format or self.format
        return decode_step(self.packed(shape, format), format, batch, self.context, self._load(shape), rows)

    def prompt(self, shape: Shape, batch: int, format: Format) -> Step:
        """The prompts of so many texts."""
        return prompt_step(self.packed(shape, format), format, batch, self.context, self._load(shape))

    def bytes_a_token(self, shape: Shape, batch: int, format: Format | None = None) -> float:
        """What a model reads for one token when so many texts are written at once."""
        return self.step(shape, batch, format).bytes / batch

    def memory(self, shape: Shape, batch: int, format: Format, device: Device | None = None) -> Memory:
        """What a model takes for so many texts, on a device where that matters."""
        return memory_on(self.packed(shape, format), format, device, batch, self.context)

    def time(self, shape: Shape, batch: int, device: Device, format: Format, rows: int = 1) -> Time | None:
        """Seconds of a step on one device that holds the model; None where they are not known."""
        held, load = self.packed(shape, format), self._load(shape)
        if not timed(held, format, device):
            return None
        return decode_time(held, format, device, batch, self.context, load, rows)

    def prompt_time(self, batch: int, device: Device, format: Format) -> Time | None:
        """Seconds of the prompts of so many texts, likewise."""
        held = self.packed(self.shape, format)
        if not timed(held, format, device):
            return None
        return prompt_time(held, format, device, batch, self.context, self.load)

    def cost(self, shape: Shape, batch: int) -> float:
        """What a token costs: seconds on the first device that holds the model, else bytes. For comparing only."""
        if self.fitting is None:
            return self.bytes_a_token(shape, batch)
        return self.seconds(shape, batch, *self.fitting)

    def seconds(self, shape: Shape, batch: int, device: Device, format: Format) -> float:
        """Seconds of a token on a device at the least; infinite where they are not known. For comparing only."""
        time = self.time(shape, batch, device, format)
        return time.low / batch if time else math.inf

    def bound(self, batch: int, device: Device, format: Format) -> str:
        """Which limit a decoded token meets first, `memory` or `compute`; empty where it is not known."""
        time = self.time(self.shape, batch, device, format)
        return time.bound if time else ""


def gigabytes(count: float) -> str:
    """Bytes as bandwidths count them: 16.2 GB are 16.2e9."""
    return count_of(count, "B")


def listed(numbers: list[int]) -> str:
    """`1`, `1 and 8`, `1, 8 and 64`."""
    *first, last = [f"{n:,}" for n in numbers]
    return f"{', '.join(first)} and {last}" if first else last
