"""What a model takes of a device's memory, and how many devices that makes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moec.planning.devices import GIB, Device
from moec.planning.formats import Format, stored_bytes
from moec.planning.shape import Shape

CONTEXT_BYTES = GIB  # what CUDA's context and a runtime's own tables take on a GPU: 0.5 to 1 GiB
ROWS_OF_PROMPT = 2048  # tokens that an engine puts through the layers at once: longer prompts go in pieces


@dataclass(frozen=True)
class Memory:
    """Bytes by what holds them.

    Attributes:
        weights: in their format, with scales and zero points.
        state: what the layers carry for every text of the batch, at the full context.
        activations: of the largest layer while a piece of a prompt goes through it.
        logits: of one row a text, in float32.
        runtime: the context of the device and the runtime's tables.
    """

    weights: int
    state: int
    activations: int
    logits: int
    runtime: int = CONTEXT_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.state + self.activations + self.logits + self.runtime

    def devices(self, device: Device) -> int:
        """How many of these devices hold it when everything but the runtime is split evenly. 0 where the runtime alone
        fills one."""
        room = device.memory_bytes - self.runtime
        return math.ceil((self.total - self.runtime) / room) if room > 0 else 0


def memory_of(shape: Shape, format: Format, batch: int, context: int) -> Memory:
    """What a model needs to write `batch` texts of up to `context` tokens.

    Args:
        shape: the model.
        format: of its weights and of what its layers carry.
        batch: texts at once.
        context: tokens of each, prompt and answer.
    """
    rows = min(batch * context, ROWS_OF_PROMPT) if shape.states else batch * context
    weights = sum(stored_bytes(shape.tensors, format).values())
    state = batch * sum(s.bytes(context, format.state_bits) for s in shape.states)
    activations = rows * _widest(shape) * max(format.plain, 16) // 8
    return Memory(weights, state, activations, batch * shape.vocabulary * 4)


def _widest(shape: Shape) -> int:
    """Numbers a token that a layer holds at once: in and out of the block, and the widest thing between."""
    inner = [2 * m.intermediate * m.top_k + m.hidden * m.top_k for m in shape.mixtures]
    dense = [t.shape[0] for t in shape.tensors if t.part in ("dense FFN", "attention") and len(t.shape) == 2]
    return 2 * shape.hidden + max([*inner, *dense, 0])
