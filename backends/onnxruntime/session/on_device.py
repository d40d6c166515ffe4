"""Values that stay on a session's device: the caches of a text, and tensors that a caller has there.

What crosses is what a step cannot do without: ids and mask go to the device, the logits of the last token come back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from moec.backends.onnxruntime.session.continuation import ROOM, HostContinuation
from moec.errors import MoecError
from moec.program.decoder_signature import IDS, LOGITS, MASK, PAST, present_name
from moec.program.program import Input


def run_on_device(
    session: Any, outputs: Sequence[str], inputs: Mapping[str, Any], device: str = "cuda"
) -> dict[str, Any]:
    """Run a session on values where they lie, through DLPack (https://dmlc.github.io/dlpack): nothing is copied that is
    on the device already.

    Args:
        session: an `onnxruntime.InferenceSession`.
        outputs: their names.
        inputs: by name, `OrtValue`s or anything with `__dlpack__`, contiguous. What writes them has ended.
        device: where outputs are made, as the runtime calls it.

    Returns:
        The outputs by name, `OrtValue`s on the device; the device has ended its work.
    """
    from onnxruntime import OrtValue

    binding = session.io_binding()
    for name, value in inputs.items():
        bound = value if isinstance(value, OrtValue) else OrtValue.from_dlpack(value)
        binding.bind_ortvalue_input(name, bound)
    for name in outputs:
        binding.bind_output(name, device)
    session.run_with_iobinding(binding)
    return dict(zip(outputs, binding.get_outputs(), strict=True))


def place_of(inputs: Mapping[str, torch.Tensor], name: str) -> torch.device | None:
    """The GPU that a call's tensors are on; None for the host. Raises M211 for one that no session is opened on."""
    place = next((value.device for value in inputs.values() if value.is_cuda), None)
    if place is not None and place.index not in (None, 0):
        raise MoecError("M211", f"tensors are on {place}, the engine is on cuda:0", name, "move them: x.to('cuda:0')")
    return place


class DeviceContinuation(HostContinuation):  # type: ignore[misc]  # Any to mypy, as all of moec.backends
    """The cache as the `OrtValue`s that the runtime made on the device."""

    _last: dict[str, Any]
    _past: dict[str, Any]

    def __init__(self, session: Any, inputs: Sequence[Input], name: str, device: str) -> None:
        from onnxruntime import OrtValue

        super().__init__(session, inputs, name)
        self._device = device
        # an input with a default is bound as a value, never as an array
        self._last = {name: OrtValue.ortvalue_from_numpy(value) for name, value in self._last.items()}

    def _run(self, feeds: dict[str, Any], past: dict[str, Any]) -> list[Any]:
        binding = self._session.io_binding()
        for name, value in {**feeds, **past}.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, "cpu" if name == LOGITS else self._device)
        self._session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        return [logits.numpy(), *present]


class DeviceBuffers(DeviceContinuation):
    """The cache as buffers on the device with room for more tokens, each both past and present of its layer: tokens are
    appended to it, and nothing of it is copied or allocated while there is room.

    For graphs whose operator reads as many places as the mask tells, in a prompt too.
    """

    def __init__(self, session: Any, inputs: Sequence[Input], name: str, device: str) -> None:
        super().__init__(session, inputs, name, device)
        self._room = 0
        self._binding: Any = None
        self._logits: Any = None  # of one token a row, where the graph computes no others

    def _advance(self, ids: Any, mask: Any) -> Any:
        total = mask.shape[1]
        if total > self._room:
            self._grow(len(ids), total)
        binding: Any = self._binding
        binding.bind_cpu_input(IDS, ids)
        binding.bind_cpu_input(MASK, mask)
        if not self._last:
            binding.bind_output(LOGITS, "cpu")
        self._session.run_with_iobinding(binding)
        return self._logits if self._last else binding.get_outputs()[-1].numpy()  # bound last

    def _grow(self, batch: int, total: int) -> None:
        """Buffers that are twice as long, or long enough; what they held goes through the host, which is seldom."""
        from onnxruntime import OrtValue

        room = self._room_for(total)
        self._past, self._room = self._buffers(batch, room), room
        self._binding = self._session.io_binding()
        for name, buffer in self._past.items():
            self._binding.bind_ortvalue_input(name, buffer)
            self._binding.bind_ortvalue_output(present_name(name), buffer)
        for name, value in self._last.items():
            self._binding.bind_ortvalue_input(name, value)
        if self._last:
            self._logits = self._host_logits(batch)
            self._binding.bind_ortvalue_output(LOGITS, OrtValue.ortvalue_from_numpy(self._logits))

    def _room_for(self, total: int) -> int:
        return max(total + ROOM, 2 * self._room)

    def _buffers(self, batch: int, room: int) -> dict[str, Any]:
        """Of so many places, with what the ones before held."""
        used, zeros, sizes = self._past, dict[tuple[int, ...], Any](), {"batch": batch, PAST: room}
        return {c.name: self._filled(c.resolve(sizes), c.dtype, used.get(c.name), zeros) for c in self._caches}

    def _host_logits(self, batch: int) -> np.ndarray:
        spec = next(o for o in self._session.get_outputs() if o.name == LOGITS)
        return np.empty((batch, 1, spec.shape[2]), np.float16 if "float16" in spec.type else np.float32)

    def _filled(self, shape: tuple[int, ...], dtype: torch.dtype, used: Any, zeros: dict[tuple[int, ...], Any]) -> Any:
        """A buffer of zeros, or of what an older one held: a place that nobody has written may hold anything, and zero
        times anything is not always zero."""
        from onnxruntime import OrtValue

        if used is not None:
            return OrtValue.ortvalue_from_numpy(lengthened(used.numpy(), shape[2]), self._device, 0)
        buffer = OrtValue.ortvalue_from_shape_and_type(shape, _numpy(dtype).type, self._device, 0)
        buffer.update_inplace(self._zeros(shape, dtype, zeros))
        return buffer

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype, made: dict[tuple[int, ...], Any]) -> Any:
        """Zeros on the device, one for each shape: `made` has them."""
        from onnxruntime import OrtValue

        if shape not in made:
            made[shape] = OrtValue.ortvalue_from_numpy(np.zeros(shape, _numpy(dtype)), self._device, 0)
        return made[shape]


def _numpy(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype


def lengthened(used: np.ndarray, room: int) -> np.ndarray:
    """A buffer `[B, G, room, D]` that holds what a shorter one held, then zeros."""
    held = np.zeros((*used.shape[:2], room, used.shape[3]), used.dtype)
    held[:, :, : used.shape[2]] = used
    return held
