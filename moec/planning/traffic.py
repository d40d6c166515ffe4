"""Requests that arrive by themselves: how many replicas they need, how full those are, how long one waits."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from moec.errors import MoecError
from moec.planning.costs import memory_on, sizes
from moec.planning.devices import Device
from moec.planning.formats import Format
from moec.planning.load import UNIFORM, Load
from moec.planning.pace import time_on
from moec.planning.shape import Shape
from moec.planning.step import Time
from moec.planning.work import Work

BUSY = 0.9  # share of a replica's capacity that is planned with: a queue grows without bound towards 1
LARGEST_BATCH = 1024
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(rps|/s|rpm|/min)?")


@dataclass(frozen=True)
class Traffic:
    """Requests that arrive at random (Poisson), all of one length.

    Attributes:
        rate: requests a second.
        prompt, answer: tokens of each.
    """

    rate: float
    prompt: int = 1024
    answer: int = 256


@dataclass(frozen=True)
class Operation:
    """How replicas run under the traffic.

    Attributes:
        replicas: how many are needed.
        batch: texts that one writes at once, in the mean.
        busy: share of what the replicas could take.
        first_token_seconds: from the arrival to the first token, in the mean.
        token_seconds: from one token to the next.
        cost_an_hour: of all replicas; None without a price.
        cost_a_million: of a million tokens of answers, likewise.
    """

    replicas: int
    batch: float
    busy: float
    first_token_seconds: float
    token_seconds: float
    cost_an_hour: float | None
    cost_a_million: float | None


@dataclass(frozen=True)
class Served:
    """A model under the traffic.

    Attributes:
        model, format, device: what serves.
        devices: of one replica; 0 where no number of them in one node holds it.
        largest_batch: texts that the replica's memory holds at their full length.
        tokens_a_second: of all answers together.
        fast, slow: with the lower and the upper end of the times' intervals; None where none holds it.
        origin: of the times.
    """

    model: str
    format: str
    device: str
    devices: int
    largest_batch: int
    tokens_a_second: float
    fast: Operation | None
    slow: Operation | None
    origin: str


def read_rate(text: str) -> float:
    """`20rps`, `20/s`, `90rpm` or `20` as requests a second. Raises M201."""
    found = _RATE.fullmatch(text.strip().lower())
    rate = float(found[1]) / (60 if found[2] in ("rpm", "/min") else 1) if found else 0.0
    if not 0 < rate < 1e9:
        raise MoecError("M201", f"{text!r} is no rate of requests", "--traffic", "write it as 20rps or 90rpm")
    return rate


def serve(
    shape: Shape, format: Format, device: Device, traffic: Traffic, load: Load = UNIFORM, price: float | None = None
) -> Served:
    """A model in a format on one kind of device, with the size of replica that needs the fewest devices.

    A replica of capacity c(B) = 1 / (t_prompt + n t_step(B) / B) requests a second, where n is the answer's length, is
    at the batch B at which c(B) is its share of the traffic: Little's law (1961) with prompts that take the device's
    time from the steps. A prompt waits as in a queue of one server with a fixed time (M/D/1), and for the step that
    runs.

    Raises:
        MoecError: M201 for a model that writes no text, and for texts longer than its positions.
    """
    whole = traffic.prompt + traffic.answer
    if not shape.states:
        raise MoecError("M201", f"{shape.name} writes no answers", "--traffic", "ask without --traffic")
    if shape.longest and whole > shape.longest:
        what = f"the positions of {shape.name} end at {shape.longest:,} tokens"
        fix = f"--answer {shape.longest - traffic.prompt}" if traffic.prompt < shape.longest else "a shorter --prompt"
        raise MoecError("M201", what, f"--prompt {traffic.prompt} --answer {traffic.answer}", fix)
    found = [_served(shape, format, device, traffic, load, price, n) for n in sizes(shape, format, device, 1, whole)]
    if found:
        return min(found, key=lambda s: (s.slow.replicas * s.devices if s.slow else math.inf, s.devices))
    rate = traffic.rate * traffic.answer
    return Served(shape.name, format.name, device.name, 0, 0, rate, None, None, "")


def _served(
    shape: Shape, format: Format, device: Device, traffic: Traffic, load: Load, price: float | None, devices: int
) -> Served:
    largest = _largest(shape, format, device, devices, traffic.prompt + traffic.answer)
    curve = _Curve(shape, format, device, devices, traffic, load)
    fast, slow = (_operate(curve, traffic, largest, end, price) for end in (0, 1))
    rate, origin = traffic.rate * traffic.answer, curve.step(1).origin
    return Served(shape.name, format.name, device.name, devices, largest, rate, fast, slow, origin)


def _largest(shape: Shape, format: Format, device: Device, devices: int, context: int) -> int:
    """The largest batch that so many devices hold."""
    low, high = 1, LARGEST_BATCH + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = 0 < memory_on(shape, format, device, middle, context).devices(device) <= devices
        low, high = (middle, high) if fits else (low, middle)
    return low


class _Curve:
    """Times of a replica by batch: those of powers of two are worked out, between them it is linear."""

    def __init__(
        self, shape: Shape, format: Format, device: Device, devices: int, traffic: Traffic, load: Load
    ) -> None:
        self._device, self._devices, self._steps = device, devices, dict[int, Time]()
        self._work = Work(shape, format, 1, traffic.prompt + traffic.answer // 2, load)
        self.prompt = self._time(Work(shape, format, 1, traffic.prompt, load, prompt=True))

    def step(self, batch: int) -> Time:
        """Of a step of so many texts, each in the middle of its answer."""
        if batch not in self._steps:
            work = Work(self._work.shape, self._work.format, batch, self._work.context, self._work.load)
            self._steps[batch] = self._time(work)
        return self._steps[batch]

    def seconds(self, batch: float, end: int) -> float:
        """The same between powers of two, at one end of the interval."""
        below = 2 ** int(math.log2(max(batch, 1)))
        first, second = (_end(self.step(n), end) for n in (below, 2 * below))
        return first + (second - first) * (max(batch, 1) / below - 1)

    def _time(self, work: Work) -> Time:
        return time_on(work, self._device, self._devices)


def _end(time: Time, end: int) -> float:
    return time.high if end else time.low


def _operate(curve: _Curve, traffic: Traffic, largest: int, end: int, price: float | None) -> Operation:
    prompt = _end(curve.prompt, end)

    def capacity(batch: float) -> float:
        return 1 / (prompt + traffic.answer * curve.seconds(batch, end) / batch)

    most = capacity(largest)
    replicas = max(1, math.ceil(traffic.rate / (BUSY * most)))
    share = traffic.rate / replicas
    free = 1 - share * prompt  # of the device's time, for steps
    batch = _batch(capacity, share, largest) if share > capacity(1) else 1.0
    token = curve.seconds(batch, end) / free
    waiting = share * prompt * prompt / (2 * free) + curve.seconds(batch, end) * min(1.0, share / capacity(1))
    hour = None if price is None else price * replicas * curve._devices
    million = None if hour is None else hour / (traffic.rate * traffic.answer * 3600) * 1e6
    texts = min(batch, share * traffic.answer * token)
    return Operation(replicas, texts, share / most, prompt + waiting, token, hour, million)


def _batch(capacity: Callable[[float], float], share: float, largest: int) -> float:
    """The batch at which a replica takes its share: capacity grows with the batch."""
    low, high = 1.0, float(largest)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if capacity(middle) < share else (low, middle)
    return high
