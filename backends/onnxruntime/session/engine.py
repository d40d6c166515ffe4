"""An ONNX Runtime session as an engine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.backends.onnx.assumed import read_assumptions
from moec.backends.onnxruntime.attention.kv_cache import SHARED
from moec.backends.onnxruntime.session.continuation import (
    DeviceContinuation,
    HostContinuation,
    SharedContinuation,
    refuse,
)
from moec.backends.onnxruntime.session.huge_pages import anonymous_memory, collapse_beside, without
from moec.errors import MoecError
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
PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


class OnnxruntimeEngine(Engine):
    """Runs `model.onnx` of an engine folder.

    Args:
        folder: where `model.onnx` lies.
        target: its device chooses the execution provider; the option `threads` sets the intra-op threads (default: all
            cores).
        prepack: let the runtime copy weights into its kernels' own layout; without it see `_stay_small`.
    """

    def __init__(self, folder: Path, target: Target, prepack: bool = True) -> None:
        self.name = f"onnxruntime:{target.device or 'cpu'}"
        self._path, self._target, self._providers = folder / MODEL_FILE, target, PROVIDERS[target.device or "cpu"]
        before = anonymous_memory()
        self._session = open_session(self._path, target, prepack)
        self._weights = without(anonymous_memory(), before)  # and whatever else the session made
        self.inputs = tuple(
            Input(i.name, _DTYPES[i.type], tuple(d if isinstance(d, int) else str(d) for d in i.shape))
            for i in self._session.get_inputs()
        )
        self.outputs = tuple(o.name for o in self._session.get_outputs())
        self.assume(read_assumptions(self._session.get_modelmeta().custom_metadata_map, str(self._path)))

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        feeds = {name: value.numpy(force=True) for name, value in inputs.items()}
        try:  # no context manager: with one token every microsecond of Python counts, caches are full of weights
            values = self._session.run(self.outputs, feeds)
        except Exception as error:
            refuse(error, self.name)
            raise
        return {name: torch.from_numpy(value) for name, value in zip(self.outputs, values, strict=True)}

    def continuation(self) -> HostContinuation:
        """A new text, see `moec.execution.generation`: its cache stays where the runtime keeps it."""
        if self._providers == PROVIDERS["cpu"]:
            if self._weights:  # the first text, and seldom the last: what follows reads them again for every token
                collapse_beside(self._weights)
                self._weights = []
            form = (
                SharedContinuation if SHARED in self._session.get_modelmeta().custom_metadata_map else HostContinuation
            )
            return form(self._session, self.inputs, self.name)
        return DeviceContinuation(self._session, self.inputs, self.name, "cuda")

    def intermediates(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every floating-point value inside, for `moec.proof.bisection`."""
        from moec.backends.onnxruntime.session.intermediates import intermediates

        return intermediates(self._path, self._providers, inputs)

    def part(self, inputs: Mapping[str, Tensor], x: Tensor, y: Tensor, within: float) -> Any:
        """What the engine computes between two values, for `moec.proof.driven`: see
        `moec.backends.onnxruntime.session.part`."""
        from moec.backends.onnxruntime.session.part import part

        return part(self._path, partial(session_of, self._target), self._providers, inputs, x, y, within)

    def close(self) -> None:
        self._session = None


def open_session(path: Path, target: Target, prepack: bool = True) -> Any:
    """An `onnxruntime.InferenceSession`; raises M302 when the device's provider is not there, M106 when the file does
    not load."""
    import onnxruntime as ort

    device = target.device or "cpu"
    providers = PROVIDERS[device]
    if device == "cuda" and not torch.cuda.is_available():  # onnxruntime itself would run on the CPU without a word
        raise MoecError(
            "M302",
            "there is no CUDA device here",
            str(target),
            "run on a machine with a CUDA 13 GPU, or use --target onnxruntime",
        )
    options = _options(target)
    left_out = None if prepack else _stay_small(options, ort)
    try:
        return ort.InferenceSession(str(path), options, providers=providers, disabled_optimizers=left_out)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise MoecError(
            "M106", f"ONNX Runtime cannot load the engine: {reason[:300]}", str(path), "compile it again"
        ) from error


def session_of(target: Target, model: bytes, entries: Mapping[str, str]) -> Any:
    """A session of a graph that is in memory, with the settings of an engine's; `entries`: of its configuration."""
    import onnxruntime as ort

    options = _options(target)
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return ort.InferenceSession(model, options, providers=PROVIDERS[target.device or "cpu"])


def _options(target: Target) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it says of errors it raises too; its own log would print names as they are
    options.intra_op_num_threads = target.threads
    return options


def _stay_small(options: Any, ort: Any) -> list[str]:
    """Let weights stay memory-mapped and keep nothing that is made of them; returns the optimizers to leave out.

    Folding would hold every step of unpacking a matrix until the last is done, the default order would unpack all of
    them first, and each thread unpacks an expert of its own.
    """
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_mem_pattern = options.enable_cpu_mem_arena = False
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.intra_op_num_threads = options.intra_op_num_threads or 1
    return ["ConstantFolding"]
