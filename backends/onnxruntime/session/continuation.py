"""A text that an ONNX Runtime session is writing, its cache kept as the runtime gave it, or in buffers that the graph
appends to.

Measured on a CPU (Qwen3, 8 layers, one token after 16 and after 1024, one thread): plain `run` with numpy arrays copies
neither what goes in nor what comes out, and is the fastest by 0 to 7 %; OrtValues and I/O binding are equal to that or
slower, unless they spare a copy of the cache: see `kv_cache`. Then ids and logits are bound once too: to fetch the
outputs of 12 layers from a binding takes 140 µs when caches are full of weights. Elsewhere than on the host: see
`on_device`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from moec.backends.onnx.cache_rows import COMPACT
from moec.backends.onnxruntime.optimization.last_logits import LOGITS_FROM
from moec.backends.onnxruntime.session.libraries import without_cudnn
from moec.errors import MoecError
from moec.program.decoder_signature import (
    IDS,
    LOGITS,
    MASK,
    beginning,
    cache_inputs,
    fixed_inputs,
    growing_inputs,
    present_name,
)
from moec.program.program import Input

ROOM = 256  # tokens: a longer buffer is made, and the cache copied, when these are used up


def refuse(error: Exception, engine: str) -> None:
    """Raise M211 for what the runtime says of a call: an invalid argument, such as a token that is not in the
    vocabulary, or a node that fails; M301 for an operator that CUDA has in cuDNN alone. Any other error is left alone.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    if "cuDNN is unavailable" in str(error):
        node = re.search(r"running (\w+) node", str(error))
        raise without_cudnn(node[1] if node else "an operator", engine) from error
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
    if isinstance(error, runtime.InvalidArgument):
        fix = "give values that the model knows, ids below its vocabulary"
        raise MoecError("M211", f"ONNX Runtime refuses the values: {reason}", engine, fix) from error
    if type(error).__module__ == runtime.__name__:
        fix = "give other inputs; where none of them run, compile the model again"
        raise MoecError("M211", f"the engine does not run: {reason}", engine, fix) from error


class HostContinuation:
    """The cache as numpy arrays that belong to the runtime. `step` is that of `moec.execution.generation.Continuation`.

    Args:
        session: an `onnxruntime.InferenceSession`.
        inputs: its signature.
        name: the engine's.
    """

    def __init__(self, session: Any, inputs: Sequence[Input], name: str) -> None:
        self._session, self._caches, self._name = session, cache_inputs(inputs), name
        self._outputs = [LOGITS, *(present_name(c.name) for c in self._caches)]
        cut = any(i.name == LOGITS_FROM for i in session.get_overridable_initializers())
        # of all logits only a last token's are read
        self._last: dict[str, Any] = {LOGITS_FROM: np.array([-1])} if cut else {}
        self._one_by_one = COMPACT in session.get_modelmeta().custom_metadata_map
        self._past: dict[str, Any] = {}

    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        (batch, new), total = ids.shape, mask.shape[1]
        if self._one_by_one and batch > 1 and 1 < new < total:  # more than the operator takes
            for n in range(new - 1):
                self.step(ids[:, n : n + 1], mask[:, : total - new + n + 1])
            ids = ids[:, -1:]
        try:
            logits: np.ndarray = self._advance(np.ascontiguousarray(ids), np.ascontiguousarray(mask))
        except Exception as error:
            refuse(error, self._name)
            raise
        return logits[:, -1]

    def _advance(self, ids: Any, mask: Any) -> Any:
        """The logits, the last token's at least; the cache has all new tokens then."""
        logits, *present = self._run({IDS: ids, MASK: mask, **self._last}, self._past or self._empty(len(ids)))
        self._past = self._named(present)
        return logits

    def _named(self, present: list[Any]) -> dict[str, Any]:
        return {c.name: value for c, value in zip(self._caches, present, strict=True)}

    def _empty(self, batch: int) -> dict[str, Any]:
        sizes = beginning(batch)
        return {c.name: np.zeros(c.resolve(sizes), torch.empty(0, dtype=c.dtype).numpy().dtype) for c in self._caches}

    def _run(self, feeds: dict[str, Any], past: dict[str, Any]) -> list[Any]:
        values: list[Any] = self._session.run(self._outputs, {**feeds, **past})
        return values


class SharedContinuation(HostContinuation):
    """The cache as buffers with room for more tokens, each both past and present of its layer: one token appends to it
    and copies nothing. A state that does not grow has two buffers, which steps read and write in turns.

    Several tokens at once are concatenated by the graph, which then takes any batch; their time is in other things than
    the copy.
    """

    def __init__(self, session: Any, inputs: Sequence[Input], name: str) -> None:
        super().__init__(session, inputs, name)
        self._growing = {c.name for c in growing_inputs(inputs)}
        self._bindings: list[Any] = []
        self._turn = 0  # of the bindings, and of the states that they read
        self._states: dict[str, tuple[Any, Any]] = {}
        self._token: Any = None  # what one step reads and writes, beside the cache and the mask
        self._logits: Any = None

    def _advance(self, ids: Any, mask: Any) -> Any:
        (_, new), total = ids.shape, mask.shape[1]
        if new > 1 or not self._bindings:
            past = self._used_part(total - new) or self._empty(len(ids))
            logits, *present = self._run({IDS: ids, MASK: mask, **self._last}, past)
            self._token, self._logits = np.empty_like(ids[:, :1]), np.empty_like(logits[:, :1])
            self._keep(self._named(present))
            return logits
        if self._past and total > next(iter(self._past.values())).shape[2]:
            self._keep(self._used_part(total - new))
        self._token[:] = ids
        binding = self._bindings[self._turn]
        binding.bind_cpu_input(MASK, mask)
        self._session.run_with_iobinding(binding)
        self._turn = (self._turn + 1) % len(self._bindings)
        return self._logits

    def _used_part(self, length: int) -> dict[str, Any]:
        """The part of the buffers that is in use, and the states that were written last."""
        grown = {name: buffer[:, :, :length] for name, buffer in self._past.items()}
        return grown | {name: pair[self._turn] for name, pair in self._states.items()}

    def _keep(self, caches: dict[str, Any]) -> None:
        """Copy the caches into buffers with room, and bind these as past and present."""
        self._past = {name: _with_room(value) for name, value in caches.items() if name in self._growing}
        fixed = {name: np.array(value) for name, value in caches.items() if name not in self._growing}
        self._states = {name: (value, np.empty_like(value)) for name, value in fixed.items()}
        self._turn, self._bindings = 0, [self._bound(turn) for turn in range(2 if fixed else 1)]

    def _bound(self, turn: int) -> Any:
        """A binding of one step; that of the other turn writes the states that this one reads."""
        from onnxruntime import OrtValue

        states = {name: pair[turn] for name, pair in self._states.items()}
        written = {name: pair[1 - turn] for name, pair in self._states.items()}
        binding = self._session.io_binding()
        # on the host a value is the array's own memory
        for name, value in {IDS: self._token, **self._last, **self._past, **states}.items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(value))
        for name, value in {**self._past, **written}.items():
            binding.bind_ortvalue_output(present_name(name), OrtValue.ortvalue_from_numpy(value))
        binding.bind_ortvalue_output(LOGITS, OrtValue.ortvalue_from_numpy(self._logits))
        return binding


def can_be_buffers(inputs: Sequence[Input]) -> bool:
    """Whether each state gets a place for each token, or keeps its shape."""
    return len(growing_inputs(inputs)) + len(fixed_inputs(inputs)) == len(cache_inputs(inputs))


def _with_room(value: np.ndarray) -> np.ndarray:
    """A buffer `[batch, heads, tokens + ROOM, size]` that begins with a cache."""
    batch, heads, length, size = value.shape
    buffer = np.empty((batch, heads, length + ROOM, size), value.dtype)
    buffer[:, :, :length] = value
    return buffer
