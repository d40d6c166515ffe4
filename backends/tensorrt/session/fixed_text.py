"""A text whose cache lies in buffers of fixed size, written in place: a step sets no shape, copies no cache and makes
no tensor, so that it can be replayed as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from moec.backends.tensorrt.fixed_signature import LENGTH, VIEW, buffers
from moec.errors import MoecError
from moec.execution.generation import last_logits
from moec.program.decoder_signature import IDS, MASK, SEQUENCE, cache_inputs, present_name
from moec.program.signature import Input

LEAST = 64  # places that a call looks at, at the least; then twice as many, and so on
Outputs = dict[str, Tensor]


class Executor(Protocol):
    """What runs a plan on tensors that stay where they are."""

    device: str
    bound: object  # whose tensors are bound

    def bind(self, owner: object, inputs: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        """Let the plan read these inputs from now on, and write these outputs; it allocates the others."""

    def execute(self) -> Outputs:
        """Run on what the inputs hold now; the outputs that were not given, whose memory the next run writes over."""

    def capture(self) -> Callable[[], Outputs] | None:
        """The same as one launch; None where the library does not let itself be captured."""

    def apart(self) -> Executor:
        """Another of the same plan, for one text's steps: what is bound there stays, whatever other texts do."""


def view_of(total: int, capacity: int) -> int:
    """How many places a call of so many tokens looks at: a power of two, so that few steps change it."""
    return min(max(LEAST, 1 << (total - 1).bit_length()), capacity)


class FixedText:
    """One text on a plan with a fixed cache. `step` is that of `moec.execution.generation.Continuation`.

    Args:
        executor: of the plan.
        inputs: of the program, whose cache grows.
        capacity: places of a buffer.
        name: the engine's, for errors.
        once: one call is all that comes, which no executor of its own is made for.
    """

    def __init__(
        self, executor: Executor, inputs: Sequence[Input], capacity: int, name: str, once: bool = False
    ) -> None:
        self._executor, self._capacity, self._name = executor, capacity, name
        self._steps_on = executor if once else None  # else made with the first step
        self._specs, self._caches = buffers(inputs, capacity), [c.name for c in cache_inputs(inputs)]
        self._given: dict[str, Tensor] = {}
        self._replay: Callable[[], Outputs] | None = None
        self._steps = 0  # since tensors were bound

    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return last_logits(self.advance(torch.from_numpy(ids), torch.from_numpy(mask)))

    def advance(self, ids: Tensor, mask: Tensor) -> Outputs:
        """Append tokens.

        Args:
            ids: `[batch, new]`. mask: `[batch, earlier + new]`.

        Returns:
            The outputs other than the cache; the next call may write over them.

        Raises:
            MoecError: M211 where the buffers have no room for them.
        """
        (batch, new), total = ids.shape, mask.shape[1]
        self._require_room(total)
        view = view_of(total, self._capacity)
        if self._sizes() != (batch, new, view):
            self._allocate(batch, new, view)
            self._given[MASK][:, :total] = mask.to(self._executor.device)
        else:
            self._given[MASK][:, total - new : total] = mask[:, total - new :].to(self._executor.device)
        self._given[IDS].copy_(ids)
        self._given[LENGTH].fill_(total - new)
        return self._run()

    def fill(self, past: Mapping[str, Tensor]) -> None:
        """Begin with a cache that is there, `[batch, heads, tokens, size]`. Raises M211 as `advance` does."""
        batch, _, length, _ = next(iter(past.values())).shape
        self._require_room(length)
        self._allocate(batch, 0, 0)
        for name in self._caches:
            self._given[name][:, :, : past[name].shape[2]] = past[name].to(self._executor.device)

    def present(self, total: int) -> Outputs:
        """The cache's places that hold tokens, by the names of outputs."""
        return {present_name(name): self._given[name][:, :, :total] for name in self._caches}

    def _require_room(self, total: int) -> None:
        if total > self._capacity:
            what = f"{total} tokens are more than the {self._capacity} that the engine's cache has room for"
            raise MoecError("M211", what, self._name, "compile with the target's option max_past_sequence=N")

    def _sizes(self) -> tuple[int, ...]:
        return (*self._given[IDS].shape, self._given[MASK].shape[1]) if self._given else ()

    def _allocate(self, batch: int, new: int, view: int) -> None:
        """Tensors of other sizes; the buffers stay as they are while the batch does."""
        sizes = {"batch": batch, SEQUENCE: new, VIEW: view}
        for spec in self._specs:
            shape, before = spec.resolve(sizes), self._given.get(spec.name)
            if before is None or before.shape != shape:
                self._given[spec.name] = torch.zeros(shape, dtype=spec.dtype, device=self._executor.device)
        for executor in (self._executor, self._steps_on):
            if executor is not None:
                executor.bound = None

    def _run(self) -> Outputs:
        step = self._given[IDS].shape[1] == 1
        executor = self._apart() if step else self._executor
        if executor.bound is not self:
            kept = {present_name(name): self._given[name] for name in self._caches}
            executor.bind(self, self._given, kept)
            self._replay, self._steps = None, 0
        self._steps += 1
        if self._steps == 2 and step:  # the first run of a shape may still tune and compile
            self._replay = executor.capture()
        return self._replay() if self._replay is not None else executor.execute()

    def _apart(self) -> Executor:
        """Where this text's steps run: apart from others', so that they are captured once and not each turn."""
        self._steps_on = self._steps_on or self._executor.apart()
        return self._steps_on
