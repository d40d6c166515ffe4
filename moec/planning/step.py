"""What one step costs: bytes read, FLOPs, and how long the slower of the two takes at the least (the roofline model,
Williams et al. 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moec.planning.devices import Device
from moec.planning.formats import Format, stored_bytes
from moec.planning.load import UNIFORM, Load
from moec.planning.shape import Shape

# shares of the bandwidth and of the matrix rate that the best kernels for experts reach on an H200, bf16, 1 to 8,192
# tokens: the lowest and the highest of the published tables of vLLM, TensorRT-LLM and SGLang
BANDWIDTH_SHARE = (0.43, 0.88)
RATE_SHARE = (0.36, 0.82)


@dataclass(frozen=True)
class Step:
    """One forward of a batch.

    Attributes:
        tokens: that go through: one a text in decoding, the whole prompt before.
        experts: distinct ones that a layer touches, the mean over layers; 0 for a dense model.
        weight_bytes: of the weights that are read. state_bytes: of the cache that is read.
        flops: of matrix products and attention, two a multiply-add.
    """

    tokens: float
    experts: float
    weight_bytes: float
    state_bytes: float
    flops: float

    @property
    def bytes(self) -> float:
        """All that is read."""
        return self.weight_bytes + self.state_bytes


@dataclass(frozen=True)
class Time:
    """Seconds of a step on a device.

    Attributes:
        low, high: between them it lies: from the highest and the lowest measured shares of what the device can do.
        bound: which of the two limits holds, `memory` or `compute`.
        origin: where the shares come from, or the measured tables.
        parts: seconds by what takes them, where tables of kernels were summed; else empty.
    """

    low: float
    high: float
    bound: Literal["memory", "compute"]
    origin: str
    parts: tuple[tuple[str, float], ...] = ()


def decode_step(shape: Shape, format: Format, batch: float, context: int, load: Load = UNIFORM, rows: int = 1) -> Step:
    """One token for each of `batch` texts that have `context` tokens behind them, or `rows` tokens of each, as when a
    draft is checked."""
    state = batch * sum(s.bytes(context, format.state_bits) for s in shape.states)
    attended = rows * batch * sum(s.rows(context) for s in shape.states)
    return _step(shape, format, rows * batch, rows * batch, attended, state, load)


def prompt_step(shape: Shape, format: Format, batch: float, prompt: int, load: Load = UNIFORM) -> Step:
    """`batch` prompts of so many tokens in one go; only the last row of each goes through the output head."""
    attended = batch * sum(pairs(prompt, s.window) / s.every for s in shape.states if s.per_token)
    return _step(shape, format, batch * prompt, batch, attended, 0.0, load)


def time_of(step: Step, device: Device, format: Format) -> Time:
    """How long the step takes on one device that holds the whole model."""
    reading = step.bytes / (device.bandwidth * 1e9)
    computing = step.flops / device.flops(bits_computed(format))
    low, high = (max(reading / BANDWIDTH_SHARE[k], computing / RATE_SHARE[k]) for k in (1, 0))
    bound: Literal["memory", "compute"] = "memory" if reading >= computing else "compute"
    return Time(low, high, bound, "roofline; shares of bandwidth and rate measured by others for experts on an H200")


def expert_bytes(shape: Shape, format: Format) -> list[float]:
    """Bytes of one expert of each mixture."""
    whole = stored_bytes(shape.tensors, format).get("routed experts", 0)
    count = sum(m.parameters for m in shape.mixtures)
    return [whole * m.parameters / count / m.experts for m in shape.mixtures]


def bits_computed(format: Format) -> float:
    """Bits of the operands of a product: integers are unpacked to 16 bits, small floats are multiplied as they are."""
    return format.bits if format.name in ("fp8", "nvfp4", "mxfp4", "fp32") else 16


def pairs(tokens: float, window: int) -> float:
    """How many pairs of tokens a causal layer looks at, when it sees at most `window` tokens back; 0 for all."""
    if not window or window >= tokens:
        return tokens * tokens / 2
    return tokens * window - window * window / 2


def _step(shape: Shape, format: Format, tokens: float, rows: float, attended: float, state: float, load: Load) -> Step:
    used = [load.distinct(place, m, tokens) for place, m in enumerate(shape.mixtures)]
    by_part, counts = stored_bytes(shape.tensors, format), shape.parts()
    routed = sum(n * size for n, size in zip(used, expert_bytes(shape, format), strict=True))
    table = by_part.get("input embedding", 0)
    looked_up = min(tokens * shape.hidden * format.plain / 8, table)
    unread = by_part.get("routed experts", 0) + table + by_part.get("vision and audio", 0)
    weights = sum(by_part.values()) - unread + routed + looked_up
    head = counts["output head"]
    products = 2 * (tokens * (shape.active_without_embedding - counts["norm"] - head) + rows * head)
    attention = 4 * attended * shape.heads * shape.head_size
    return Step(tokens, sum(used) / len(used) if used else 0.0, weights, state, products + attention)
