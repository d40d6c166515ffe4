"""Number formats that only newer GPUs have, and what to do about the others.

TensorRT-RTX refuses such a network in the middle of the build ("Cannot compile for target(s) sm86, because the model
contains HW-specific datatypes: fp8_e4m3"), or, where no GPU is named, builds an engine that older ones cannot run. moec
asks first.
"""

from __future__ import annotations

from collections.abc import Sequence

from moec.backends.tensorrt.edition import EDITIONS

FIRST = {"fp8": 89, "nvfp4": 100}  # the compute capability that each came with; all later ones have it


def lacking(kind: str, edition: str, architectures: Sequence[int]) -> tuple[str, str] | None:
    """Why not all GPUs of an engine have a format, and which to name instead; None when they do.

    Args:
        kind: a key of `FIRST`.
        edition: `tensorrt` or `tensorrt-rtx`.
        architectures: compute capabilities that the engine is for; none means all that the library knows.
    """
    known = EDITIONS[edition].architectures
    without = [sm for sm in architectures or known if sm < FIRST[kind]]
    if not without:
        return None
    having = [f"sm{sm}" for sm in known if sm >= FIRST[kind]]
    who = " and ".join(f"sm{sm}" for sm in without) if architectures else f"sm{without[0]}, which is not ruled out,"
    has = "has" if len(without) == 1 or not architectures else "have"
    choice = "one of " if EDITIONS[edition].builds_on_gpu else ""
    return (
        f"{who} {has} no {kind}, which came with sm{FIRST[kind]}",
        f"name {choice}the GPUs that have it, --target {edition}:{','.join(having)}",
    )
