"""Sessions of an engine: on the provider that its target names, with the settings that keep its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from moec.backends.onnx.sessions import Providers, open_on
from moec.backends.onnxruntime.session.libraries import PROVIDER, require_cuda
from moec.backends.onnxruntime.session.own_kernels import register, require_same
from moec.errors import MoecError
from moec.kernels.cpu.building import LIBRARY
from moec.kernels.cpu.library import uses_own_kernels
from moec.layouts.facts import OPERATORS
from moec.targets.target import Target

CPU = "CPUExecutionProvider"
# of a session: a weight lies in memory of its own, which is free again when a kernel has packed it; in the arena both
# copies stay, and twice the weights are held
ONE_COPY = "session.use_device_allocator_for_initializers"


class Start(Protocol):
    """Opens a session of a graph that is in memory, with the settings of an engine's."""

    def __call__(self, model: bytes, entries: Mapping[str, str], plain: bool = False) -> Any:
        """`entries`: more of the session's configuration; `plain`: without the runtime's own optimisations."""
        ...


def device_of(target: Target) -> str:
    """`cpu` or `cuda`."""
    return target.device or "cpu"


def cuda_options(target: Target) -> dict[str, str]:
    """Settings of the CUDA provider, for every client. TF32 keeps 10 bits of a float32 product's factors, and is the
    provider's default; it changes the routers of half-precision engines too."""
    return {"use_tf32": "1" if target.options.get("tf32") == "true" else "0"}


def client_settings(target: Target) -> dict[str, str]:
    """What clients other than moec's have to set: see `Backend.client_settings`."""
    if device_of(target) == "cuda":
        return {**cuda_options(target), ONE_COPY: "1"}
    return {OPERATORS: LIBRARY} if uses_own_kernels(target.options) else {}


def providers_of(target: Target, **more: str) -> Providers:
    """The execution providers of a target, in order; `more` settings of CUDA's."""
    if device_of(target) == "cpu":
        return [CPU]
    return [(PROVIDER, {**cuda_options(target), **more}), CPU]


def open_session(path: Path, target: Target, prepack: bool = True, **provider: str) -> Any:
    """An `onnxruntime.InferenceSession`; raises M301 or M302 when the device's libraries or hardware are missing, M106
    when the file does not load. `provider`: more settings of the CUDA provider."""
    if device_of(target) == "cuda":
        require_cuda(str(target))
    if uses_own_kernels(target.options):
        require_same(path.parent)
    options = options_of(target)
    left_out = None if prepack else _stay_small(options)
    try:
        return open_on(providers_of(target, **provider), str(path), options, left_out, is_exact(target))
    except MoecError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise MoecError(
            "M106", f"ONNX Runtime cannot load the engine: {reason[:300]}", str(path), "compile it again"
        ) from error


def session_of(target: Target, model: bytes, entries: Mapping[str, str], plain: bool = False) -> Any:
    """See `Start`."""
    import onnxruntime as ort

    options = options_of(target)
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return open_on(providers_of(target), model, options, exact=is_exact(target))


def is_exact(target: Target) -> bool:
    """Whether kernels may not round activations to 8 bits."""
    return target.options.get("accuracy") != "int8"


def options_of(target: Target) -> Any:
    """The `onnxruntime.SessionOptions` of a target's engines."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it says of errors it raises too; its own log would print names as they are
    options.intra_op_num_threads = target.threads
    if device_of(target) == "cuda":
        options.add_session_config_entry(ONE_COPY, "1")
    if uses_own_kernels(target.options):
        register(options)
    return options


def _stay_small(options: Any) -> list[str]:
    """Let weights stay memory-mapped and keep nothing that is made of them; returns the optimizers to leave out.

    Folding would hold every step of unpacking a matrix until the last is done, the default order would unpack all of
    them first, and each thread unpacks an expert of its own.
    """
    import onnxruntime as ort

    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_mem_pattern = options.enable_cpu_mem_arena = False
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.intra_op_num_threads = options.intra_op_num_threads or 1
    return ["ConstantFolding"]
