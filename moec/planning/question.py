"""What a question to `moec plan` comes to, and one sentence of the answer: what the rules of advice share."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from moec.planning.devices import Device, find_device
from moec.planning.estimate import Estimate
from moec.planning.formats import Format, find_format
from moec.planning.memory import Memory, memory_of
from moec.planning.shape import Shape
from moec.planning.step import Step, Time, decode_step, prompt_step, time_of
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
        batches: sorted. context: tokens behind a text.
    """

    def __init__(self, found: Estimate) -> None:
        rows = found.situations
        self.found, self.shape = found, found.shape
        self.kind = "mixture" if found.shape.mixtures else "model"
        self.formats = [find_format(name) for name in dict.fromkeys(s.format for s in rows)]
        self.devices = [find_device(name) for name in dict.fromkeys(s.device for s in rows) if name]
        self.batches = sorted({s.batch for s in rows})
        self.context = rows[0].context

    @cached_property
    def rivals(self) -> tuple[Rival, ...]:
        """Whom it is held against, see `moec.planning.twins.rivals`; only what writes text as it does."""
        return tuple(r for r in rivals(self.shape, self.found.versus) if self.shape.states and r.shape.states)

    @property
    def format(self) -> Format:
        """The one that models are compared in: the first that one device holds, else the first."""
        return self.fitting[1] if self.fitting else self.formats[0]

    def step(self, shape: Shape, batch: int, format: Format | None = None, rows: int = 1) -> Step:
        """A token for each of so many texts, or `rows` tokens of each, as when a draft is checked."""
        one = decode_step(shape, format or self.format, batch, self.context)
        if rows == 1:
            return one
        many = decode_step(shape, format or self.format, batch * rows, self.context)
        return replace(many, state_bytes=one.state_bytes)  # the texts are as many as before

    def memory(self, shape: Shape, batch: int, format: Format) -> Memory:
        """What a model takes for so many texts."""
        return memory_of(shape, format, batch, self.context)

    def time(self, shape: Shape, batch: int, device: Device, format: Format, rows: int = 1) -> Time | None:
        """Seconds of a step on one device that holds the model; None where they are not known."""
        return time_of(self.step(shape, batch, format, rows), device, format)

    def prompt_time(self, batch: int, device: Device, format: Format) -> Time | None:
        """Seconds of the prompts of so many texts, likewise."""
        return time_of(prompt_step(self.shape, format, batch, self.context), device, format)

    def bytes_a_token(self, shape: Shape, batch: int, format: Format | None = None) -> float:
        """What a model reads for one token when so many texts are written at once."""
        return self.step(shape, batch, format).bytes / batch

    @cached_property
    def fitting(self) -> tuple[Device, Format] | None:
        """The first device that holds it alone, and the format; None where none is asked for or none does."""
        found = ((device, self.format_on(device)) for device in self.devices)
        return next(((device, format) for device, format in found if format), None)

    @property
    def measure(self) -> str:
        """What `cost` is, for a sentence."""
        if self.fitting is None:
            return f"by the bytes read in {self.format.name}"
        device, format = self.fitting
        return f"by the time on {device.name} in {format.name}"

    def cost(self, shape: Shape, batch: int) -> float:
        """What a token costs: seconds on the first device that holds the model, else bytes. For comparing only."""
        if self.fitting is None:
            return self.bytes_a_token(shape, batch)
        device, format = self.fitting
        time = self.time(shape, batch, device, format)
        return time.low / batch if time else math.inf

    def format_on(self, device: Device) -> Format | None:
        """The first of the formats in which one device holds the smallest batch and its times are known; None where
        there is none."""
        batch = self.batches[0]
        for format in self.formats:
            known = self.prompt_time(batch, device, format)
            if known and self.memory(self.shape, batch, format).devices(device) == 1:
                return format
        return None

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
