"""What TensorRT's builder says of an engine, as tables for the report."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from moec.backends.tensorrt.edition import Edition
from moec.program.decoder_signature import PAST
from moec.targets.target import Target


def tables(
    edition: Edition, built: Mapping[str, Any], described: Mapping[str, Any], plan_bytes: int, target: Target
) -> dict[str, Any]:
    """What the builder says, as facts for the report.

    Args:
        edition: the library.
        built: the answer of `builder.build_plan`, and where there is a GPU of `builder.inspect_plan`.
        described: what stands beside the plan: `architectures`, `settings`, `capacity`, `inputs`.
        plan_bytes: size of the plan.
        target: what it is for.

    Returns:
        `engine` in one row, `layers` of the network by kind with the bytes of their constants, with a GPU `plan_layers`
        (what was fused into what, one row a kernel), and the library's `messages`.
    """
    wanted = described["architectures"]
    row = {
        "library": f"{edition.title} {built['version']}",
        "architectures": ", ".join(f"sm{sm}" for sm in wanted) or "all that the library knows",
        "layers": sum(built["layers"].values()),
        "plan MiB": f"{plan_bytes / 2**20:.1f}",
        "constants MiB": f"{sum(built.get('constants', {}).values()) / 2**20:.1f}",
        "workspace MiB": target.options.get("workspace", "the library's own"),
        **described.get("settings", {}),
    }
    if described.get("capacity"):
        row["cache MiB, a text"] = f"{cache_bytes(described) / 2**20:.1f}"
    if "memory_bytes" in built:  # there was a GPU to ask
        row |= {
            "kernels": built["kernels"],
            "intermediates MiB, by profile": ", ".join(f"{n / 2**20:.1f}" for n in built["memory_bytes"]),
        }
    sizes = built.get("constants", {})
    layers = [
        {"layer": kind.lower(), "count": count, "constants MiB": f"{sizes.get(kind, 0) / 2**20:.1f}"}
        for kind, count in built["layers"].items()
    ]
    more = {"plan_layers": built["plan_layers"]} if built.get("plan_layers") else {}
    return {"engine": [row], "layers": layers, **more, "messages": built["messages"]}


def cache_bytes(described: Mapping[str, Any]) -> int:
    """What the buffers of one text take."""
    sizes = (
        (dtype, [described["capacity"] if d == PAST else d for d in shape[1:]])
        for _, dtype, shape in described["inputs"]
        if PAST in shape
    )
    return sum(prod(shape) * getattr(torch, dtype).itemsize for dtype, shape in sizes)
