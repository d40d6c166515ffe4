"""What TensorRT's builder says of an engine, as tables for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moec.backends.tensorrt.edition import Edition
from moec.targets.target import Target


def tables(
    edition: Edition, built: Mapping[str, Any], wanted: list[int], plan_bytes: int, target: Target
) -> dict[str, Any]:
    """What the builder says, as facts for the report: `engine` in one row, `layers` of the network by kind, and the
    library's `messages`."""
    row = {
        "library": f"{edition.title} {built['version']}",
        "architectures": ", ".join(f"sm{sm}" for sm in wanted) or "all that the library knows",
        "layers": sum(built["layers"].values()),
        "plan MiB": f"{plan_bytes / 2**20:.1f}",
        "workspace MiB": target.options.get("workspace", "the library's own"),
    }
    if "memory_bytes" in built:  # there was a GPU to ask
        row |= {
            "kernels": built["kernels"],
            "intermediates MiB, by profile": ", ".join(f"{n / 2**20:.1f}" for n in built["memory_bytes"]),
        }
    layers = [{"layer": kind.lower(), "count": count} for kind, count in built["layers"].items()]
    return {"engine": [row], "layers": layers, "messages": built["messages"]}
