"""The one place where an ONNX Runtime session is opened: it runs on what was asked for, or not at all.

Left alone, the runtime goes on with the CPU where a provider cannot be made, and prints that to stdout.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from moec.errors import MoecError
from moec.execution.variables import with_variables

Providers = Sequence[str | tuple[str, dict[str, str]]]


# of the environment, read when a session is opened: the CPU's QMoE multiplies 8-bit weights in float32, activations as
# they are. It has no setting for it; weights of 4 bits give the same with it, and as fast.
EXACT = "ORT_QMOE_CPU_QNBIT_GEMM", "fp32"
_opening = threading.Lock()


def open_on(
    providers: Providers,
    model: str | bytes,
    options: Any,
    left_out: Sequence[str] | None = None,
    exact: bool = True,
) -> Any:
    """An `onnxruntime.InferenceSession` on these providers.

    Args:
        providers: names, or names with options; the first is where the graph is to run.
        model: a file, or a graph's bytes.
        options: `onnxruntime.SessionOptions`.
        left_out: optimizers of the runtime that are not to be applied.
        exact: whether products of experts keep their activations as they are: a CPU session that stands in for CUDA,
            whose kernels round nothing, computes what CUDA does. Otherwise those of 8 bits round them to 8 bits.

    Raises:
        MoecError: M302 where the session has not got all of them.
        Exception: the runtime's own, where it refuses the model.
    """
    import onnxruntime as ort

    wanted = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    with _exact() if exact else nullcontext():
        session = ort.InferenceSession(
            model, options, providers=[*providers], disabled_optimizers=left_out, enable_fallback=0
        )
    lost = [name for name in wanted if name not in session.get_providers()]
    if lost:
        fix = "see `moec doctor` for what is missing, or use --target onnxruntime"
        raise MoecError("M302", f"ONNX Runtime runs without {lost[0]}", "opening the engine", fix)
    return session


@contextmanager
def _exact() -> Iterator[None]:
    name, word = EXACT
    with _opening, with_variables({name: word}):
        yield
