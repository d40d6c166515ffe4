"""What a manifest says of a plan that a library built: bytes, profiles and layers, in lines beside its times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TABLES = ("engine", "profiles", "layers", "plan_layers")  # of the facts that a backend with plans gives


def plan_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The tables about a plan; empty for an engine that is none."""
    return {name: facts[name] for name in TABLES if facts.get(name)} if facts.get("engine") else {}


def plan_lines(name: str, facts: Mapping[str, Any]) -> list[str]:
    """The same as lines: one for the plan, one a profile, and one with the kinds of layers and their bytes."""
    found = plan_of(facts)
    if not found:
        return []
    lines = [f"{name}: " + ", ".join(f"{key} {value}" for key, value in row.items()) for row in found["engine"]]
    for row in found.get("profiles", []):
        lines.append("  " + ", ".join(f"{key} {value}" for key, value in row.items()))
    layers = ", ".join(_layer(row) for row in found.get("layers", []))
    return [*lines, f"  layers: {layers}"] if layers else lines


def _layer(row: Mapping[str, Any]) -> str:
    size = str(row.get("constants MiB", "0.0"))
    return f"{row['count']} {row['layer']}" + (f" ({size} MiB)" if size != "0.0" else "")
