"""A text whose single tokens are one launch each: the step is captured as a CUDA graph when it first comes.

The provider captures a call whose shapes and addresses stay as they are. So ids, mask and logits have places of their
own on the device beside the cache, and the mask is as long as the cache, padded on the left. A graph holds what it
reads and writes for as long as the session lives: what a text that has ended leaves behind is another's to go on with.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from moec.backends.onnx.cache_rows import COMPACT
from moec.backends.onnxruntime.attention.kv_cache import SHARED
from moec.backends.onnxruntime.session.on_device import DeviceBuffers, lengthened
from moec.errors import MoecError
from moec.program.decoder_signature import IDS, LOGITS, MASK, PAST, present_name
from moec.program.program import Input

OPTION, ENTRY = "enable_cuda_graph", "gpu_graph_id"  # of the provider, and of a call: which graph it is
NONE = -1  # the graph of a call that is not captured


@dataclass(frozen=True)
class Step:
    """What a captured step reads and writes on the device, and how it is called."""

    caches: dict[str, Any]
    ids: Any
    mask: Any
    logits: Any
    binding: Any
    options: Any

    def run(self, session: Any, ids: np.ndarray, mask: np.ndarray) -> Any:
        """The logits `[batch, 1, vocabulary]` of a token for each row, after what a mask `[batch, total]` tells."""
        whole = np.zeros(self.mask.shape(), np.int64)
        whole[:, whole.shape[1] - mask.shape[1] :] = mask
        self.ids.update_inplace(ids)
        self.mask.update_inplace(whole)
        session.run_with_iobinding(self.binding, self.options)
        return self.logits.numpy()


class GraphSession:
    """A session that captures, unless a call is told not to: every call but a step is.

    Attributes:
        left: steps of texts that have ended, by texts and places of their buffers.
    """

    def __init__(self, session: Any) -> None:
        self._session, self._numbers = session, count(1)
        self._apart = _options(NONE)
        self.left: dict[tuple[int, int], list[Step]] = {}

    def run(self, outputs: Sequence[str], feeds: dict[str, Any]) -> Any:
        return self._session.run(outputs, feeds, self._apart)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        self._session.run_with_iobinding(binding, options or self._apart)

    def next_graph(self) -> Any:
        """Options of the calls of a graph that is not there yet."""
        return _options(next(self._numbers))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def require_fixed_shapes(said: Collection[str], target: str) -> None:
    """Raise M208 unless a graph's step can have the shapes of the one before. `said`: keys of the model's metadata."""
    if not {COMPACT, SHARED} <= set(said):
        what = (
            "a step cannot be a CUDA graph: only a decoder in half precision has its cache in a buffer of tokens alone"
        )
        raise MoecError("M208", what, target, "compile with precision=fp16, or without graph=true")


def _options(number: int) -> Any:
    from onnxruntime import RunOptions

    options = RunOptions()
    options.add_run_config_entry(ENTRY, str(number))
    return options


class GraphBuffers(DeviceBuffers):  # type: ignore[misc]  # Any to mypy, as all of moec.backends
    """Prompts as with `DeviceBuffers`; single tokens are graphs. Buffers have a power of two of places, so that few
    sizes come."""

    _session: GraphSession

    def __init__(self, session: GraphSession, inputs: Sequence[Input], name: str, device: str) -> None:
        super().__init__(session, inputs, name, device)
        self._steps: dict[tuple[int, int], Step] = {}  # one at most
        weakref.finalize(self, leave, session, self._steps)

    def _advance(self, ids: Any, mask: Any) -> Any:
        if ids.shape[1] > 1:
            return super()._advance(ids, mask)
        if mask.shape[1] > self._room:
            self._grow(len(ids), mask.shape[1])
        key = len(ids), self._room
        if key not in self._steps:
            self._steps[key] = self._new(len(ids))
        return self._steps[key].run(self._session, ids, mask)

    def _room_for(self, total: int) -> int:
        return 1 << (super()._room_for(total) - 1).bit_length()

    def _buffers(self, batch: int, room: int) -> dict[str, Any]:
        """Those that another text has left, or new ones. Nothing of its numbers stays: see `_filled`."""
        left = self._session.left.get((batch, room), [])
        step = left.pop() if left else None
        if step is None:
            made = super()._buffers(batch, room)
        else:
            made, zeros = step.caches, dict[tuple[int, ...], Any]()
            for c in self._caches:
                used, shape = self._past.get(c.name), c.resolve({"batch": batch, PAST: room})
                held = self._zeros(shape, c.dtype, zeros) if used is None else lengthened(used.numpy(), room)
                made[c.name].update_inplace(held)
        leave(self._session, self._steps)
        self._steps |= {} if step is None else {(batch, room): step}
        return made

    def _new(self, batch: int) -> Step:
        from onnxruntime import OrtValue

        def place(value: np.ndarray) -> Any:
            return OrtValue.ortvalue_from_numpy(value, self._device, 0)

        ids, mask = place(np.zeros((batch, 1), np.int64)), place(np.zeros((batch, self._room), np.int64))
        logits, binding = place(self._host_logits(batch)), self._session.io_binding()
        for name, value in {IDS: ids, MASK: mask, **self._past, **self._last}.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in {LOGITS: logits, **{present_name(n): v for n, v in self._past.items()}}.items():
            binding.bind_ortvalue_output(name, value)
        return Step(self._past, ids, mask, logits, binding, self._session.next_graph())


def leave(session: GraphSession, steps: dict[tuple[int, int], Step]) -> None:
    """Give a text's step to those that come."""
    for key, step in steps.items():
        session.left.setdefault(key, []).append(step)
    steps.clear()
