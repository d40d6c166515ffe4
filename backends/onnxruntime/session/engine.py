"""An ONNX Runtime session as an engine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from moec.backends.onnx.assumed import read_assumptions
from moec.backends.onnx.cache_rows import COMPACT, call_compact
from moec.backends.onnxruntime.attention.kv_cache import SHARED
from moec.backends.onnxruntime.session.continuation import HostContinuation, SharedContinuation, can_be_buffers, refuse
from moec.backends.onnxruntime.session.cuda_graph import OPTION, GraphBuffers, GraphSession, require_fixed_shapes
from moec.backends.onnxruntime.session.huge_pages import anonymous_memory, collapse_beside, without
from moec.backends.onnxruntime.session.no_tokens import without_tokens
from moec.backends.onnxruntime.session.on_device import DeviceBuffers, DeviceContinuation, place_of, run_on_device
from moec.backends.onnxruntime.session.opening import Start, device_of, open_session, session_of
from moec.execution.engine import Engine
from moec.program.program import Input
from moec.targets.target import Target

MODEL_FILE = "model.onnx"
_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(bfloat16)": torch.bfloat16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(uint8)": torch.uint8,
    "tensor(int8)": torch.int8,
    "tensor(bool)": torch.bool,
}


class OnnxruntimeEngine(Engine):
    """Runs `model.onnx` of an engine folder.

    Args:
        folder: where `model.onnx` lies.
        target: its device chooses the execution provider; the option `threads` sets the intra-op threads (default: all
            cores).
        file: another than `model.onnx`.
        prepack: let the runtime copy weights into its kernels' own layout; without it see `opening`.

    Raises:
        MoecError: M208 where the target asks for CUDA graphs, and the file's steps have no fixed shapes; else see
            `opening`.
    """

    def __init__(self, folder: Path, target: Target, prepack: bool = True, file: str = MODEL_FILE) -> None:
        self.name = f"onnxruntime:{device_of(target)}"
        self._path, self._target = folder / file, target
        before = anonymous_memory()
        captures = device_of(target) == "cuda" and target.options.get("graph") == "true"
        self._session = open_session(self._path, target, prepack, **({OPTION: "1"} if captures else {}))
        self._session = GraphSession(self._session) if captures else self._session
        self._weights = without(anonymous_memory(), before)  # and whatever else the session made
        self.inputs = _signature(self._session.get_inputs())
        self._results = _signature(self._session.get_outputs())
        self.outputs = tuple(o.name for o in self._results)
        self._said = self._session.get_modelmeta().custom_metadata_map
        if captures:  # a manifest can be edited
            require_fixed_shapes(self._said, str(target))
        self.assume(read_assumptions(self._said, str(self._path)))

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors on the host give tensors on the host. On CUDA, where one lies on the device the outputs are there
        too, and no input is copied that is there already. Raises M211 for a device that the engine is not on."""
        on_cuda = device_of(self._target) == "cuda"
        place = place_of(inputs, self.name) if on_cuda else None
        if place is not None:
            inputs = {name: value.to(place) for name, value in inputs.items()}
        if on_cuda and (nothing := without_tokens(self.inputs, self._results, inputs, self.name)) is not None:
            return nothing
        run = self._run if place is None else self._run_in_place
        return call_compact(run, inputs) if COMPACT in self._said else run(inputs)

    def _run_in_place(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {name: value.detach().contiguous() for name, value in inputs.items()}
        stream = torch.cuda.current_stream(next(iter(given.values())).device)
        stream.synchronize()  # the runtime has a stream of its own
        try:
            found = run_on_device(self._session, self.outputs, given)
        except Exception as error:
            refuse(error, self.name)
            raise
        # the session's own memory is free for its next run, whatever a caller has queued on it by then
        results = {name: from_dlpack(value).clone() for name, value in found.items()}
        stream.synchronize()
        return results

    def _run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        feeds = {name: value.numpy(force=True) for name, value in inputs.items()}
        try:  # no context manager: with one token every microsecond of Python counts, caches are full of weights
            values = self._session.run(self.outputs, feeds)
        except Exception as error:
            refuse(error, self.name)
            raise
        return {name: torch.from_numpy(value) for name, value in zip(self.outputs, values, strict=True)}

    def continuation(self) -> HostContinuation:
        """A new text, see `moec.execution.generation`: its cache stays where the runtime keeps it."""
        if device_of(self._target) == "cpu":
            if self._weights:  # the first text, and seldom the last: what follows reads them again for every token
                collapse_beside(self._weights)
                self._weights = []
            shared = SHARED in self._said and can_be_buffers(self.inputs)
            form = SharedContinuation if shared else HostContinuation
            return form(self._session, self.inputs, self.name)
        held = DeviceBuffers if {COMPACT, SHARED} <= self._said.keys() else DeviceContinuation
        held = GraphBuffers if isinstance(self._session, GraphSession) else held
        return held(self._session, self.inputs, self.name, "cuda")

    def intermediates(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every floating-point value inside, for `moec.proof.bisection`."""
        from moec.backends.onnxruntime.session.intermediates import intermediates

        return intermediates(self._path, self._start(), inputs)

    def part(self, inputs: Mapping[str, Tensor], x: Tensor, y: Tensor, within: float) -> Any:
        """What the engine computes between two values, for `moec.proof.driven`: see
        `moec.backends.onnxruntime.session.part`."""
        from moec.backends.onnxruntime.session.part import part

        return part(self._path, self._start(), inputs, x, y, within)

    def _start(self) -> Start:
        return partial(session_of, self._target)

    def close(self) -> None:
        self._session = None


def _signature(arguments: Any) -> tuple[Input, ...]:
    return tuple(
        Input(a.name, _DTYPES[a.type], tuple(d if isinstance(d, int) else str(d) for d in a.shape)) for a in arguments
    )
