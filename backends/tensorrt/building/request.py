"""What the process that builds is asked, from an engine's folder and its target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moec.backends.tensorrt.edition import Edition
from moec.backends.tensorrt.gpu import Gpu
from moec.backends.tensorrt.options import SETTINGS
from moec.files.home import cache_home
from moec.targets.backend import Refusal
from moec.targets.target import Target


def settings(target: Target) -> dict[str, str]:
    """The builder's settings of a target, all of them by name; `SETTINGS` says what each does."""
    return {name: target.options.get(name, option.default) for name, option in SETTINGS.items()}


def refused_settings(target: Target, edition: Edition, gpu: Gpu | None) -> list[Refusal]:
    """What a library cannot build: TensorRT-RTX makes plans that can be refitted only where it finds a GPU (measured
    with 1.7.1), and keeps no timings."""
    if edition.builds_on_gpu:
        return []
    asked, title = target.options, edition.title
    found = []
    if asked.get("refit") == "yes" and gpu is None:
        what = f"{title} builds plans that can be refitted on a GPU only, and there is none here"
        found.append(Refusal(what, str(target), "leave out refit=yes, or build on the GPU's machine"))
    if asked.get("timing_cache") == "keep":
        found.append(Refusal(f"{title} has no timing cache", str(target), "leave out timing_cache=keep"))
    return found


def request_of(
    edition: Edition, onnx: Path, plan: Path, target: Target, described: Mapping[str, Any], gpu: Gpu | None
) -> dict[str, Any]:
    """What `builder.build_plan` wants. `described` is what stands beside the graph; `plan` is to be written."""
    chosen = settings(target)
    devices = [d.removeprefix("sm") for d in target.device.split(",")]
    return {
        "edition": edition.backend,
        "onnx": str(onnx),
        "plan": str(plan),
        "profiles": described["profiles"],
        "architectures": [] if edition.builds_on_gpu else [int(d) for d in devices if d.isdigit()],
        "workspace_bytes": int(target.options.get("workspace", 0)) << 20,
        "timing_cache": timing_cache(edition, gpu) if chosen["timing_cache"] == "keep" else "",
        "settings": chosen,
        "native": described["native"],
        "kernels": described.get("kernels", []),
    }


def timing_cache(edition: Edition, gpu: Gpu | None) -> str:
    """The file of earlier timings, for this library, GPU and driver; empty where the library keeps none, and for a
    user without a home."""
    place = cache_home()
    if not edition.builds_on_gpu or gpu is None or place is None:
        return ""
    return str(place / "moec" / f"{edition.backend}-{edition.version()}-sm{gpu.sm}-{gpu.cuda}.timing")
