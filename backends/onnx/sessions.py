"""The one place where an ONNX Runtime session is opened: it runs on what was asked for, or not at all.

Left alone, the runtime goes on with the CPU where a provider cannot be made, and prints that to stdout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moec.errors import MoecError

Providers = Sequence[str | tuple[str, dict[str, str]]]


def open_on(providers: Providers, model: str | bytes, options: Any, left_out: Sequence[str] | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on these providers.

    Args:
        providers: names, or names with options; the first is where the graph is to run.
        model: a file, or a graph's bytes.
        options: `onnxruntime.SessionOptions`.
        left_out: optimizers of the runtime that are not to be applied.

    Raises:
        MoecError: M302 where the session has not got all of them.
        Exception: the runtime's own, where it refuses the model.
    """
    import onnxruntime as ort

    wanted = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    session = ort.InferenceSession(
        model, options, providers=[*providers], disabled_optimizers=left_out, enable_fallback=0
    )
    lost = [name for name in wanted if name not in session.get_providers()]
    if lost:
        fix = "see `moec doctor` for what is missing, or use --target onnxruntime"
        raise MoecError("M302", f"ONNX Runtime runs without {lost[0]}", "opening the engine", fix)
    return session
