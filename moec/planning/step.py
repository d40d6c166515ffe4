"""What one step costs: bytes read, FLOPs, and how long the slower of the two takes at the least (the roofline model,
Williams et al. 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moec.planning.devices import Device
from moec.planning.formats import Format, stored_bytes
from moec.planning.memory import STATE_BITS
from moec.planning.shape import Shape
from moec.planning.touched import distinct

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

    tokens: int
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
        origin: where the shares come from.
    """

    low: float
    high: float
    bound: Literal["memory", "compute"]
    origin: str


def decode_step(shape: Shape, format: Format, batch: int, context: int) -> Step:
    """One token for each of `batch` texts that have `context` tokens behind them."""
    state = batch * sum(s.elements(context) * STATE_BITS / 8 for s in shape.states)
    attended = batch * sum(s.rows(context) for s in shape.states)
    return _step(shape, format, batch, batch, attended, state)


def prompt_step(shape: Shape, format: Format, batch: int, prompt: int) -> Step:
    """`batch` prompts of so many tokens in one go; only the last row of each goes through the output head."""
    attended = batch * sum(_pairs(prompt, s.window) / s.every for s in shape.states if s.per_token)
    return _step(shape, format, batch * prompt, batch, attended, 0.0)


def time_of(step: Step, device: Device, format: Format) -> Time:
    """How long the step takes on one device that holds the whole model."""
    reading = step.bytes / (device.bandwidth * 1e9)
    computing = step.flops / device.flops(_computed_in(format))
    low, high = (max(reading / BANDWIDTH_SHARE[k], computing / RATE_SHARE[k]) for k in (1, 0))
    bound: Literal["memory", "compute"] = "memory" if reading >= computing else "compute"
    return Time(low, high, bound, "roofline; shares of bandwidth and rate measured by others for experts on an H200")


def _computed_in(format: Format) -> float:
    """Bits of the operands: integers are unpacked to 16 bits, small floats are multiplied as they are."""
    return format.bits if format.name in ("fp8", "nvfp4", "mxfp4", "fp32") else 16


def _pairs(tokens: int, window: int) -> float:
    """How many pairs of tokens a causal layer looks at."""
    if not window or window >= tokens:
        return tokens * tokens / 2
    return tokens * window - window * window / 2


def _step(shape: Shape, format: Format, tokens: int, rows: int, attended: float, state: float) -> Step:
    used = [distinct(m.experts, m.top_k, tokens) for m in shape.mixtures]
    idle = sum(m.parameters * (1 - n / m.experts) for m, n in zip(shape.mixtures, used, strict=True))
    by_part, counts = stored_bytes(shape.tensors, format), shape.parts()
    routed = by_part.get("routed experts", 0) * (1 - idle / (counts["routed experts"] or 1))
    table = by_part.get("input embedding", 0)
    looked_up = min(tokens * shape.hidden * format.plain / 8, table)
    unread = by_part.get("routed experts", 0) + table + by_part.get("vision and audio", 0)
    weights = sum(by_part.values()) - unread + routed + looked_up
    head = counts["output head"]
    products = 2 * (tokens * (shape.active_without_embedding - counts["norm"] - head) + rows * head)
    attention = 4 * attended * shape.heads * shape.head_size
    return Step(tokens, sum(used) / len(used) if used else 0.0, weights, state, products + attention)
