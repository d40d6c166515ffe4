"""A chain of kernels run in Triton's interpreter as TensorRT would run its plugins: every size is what the plugin says
for the tokens at hand."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.backends.tensorrt.plugins.chain import ChainSizes, Kernel, compile_chains, kernels
from moec.dialect import Activation
from moec.kernels.packed import ExpertCodes
from moec.kernels.starting import start
from moec.kernels.tiles import Tile
from tests.kernels.accuracy import Problem

SMALL = Tile(16, 32, 32)
FUSED = Activation("silu", alpha=1.702, beta=1.0, limit=1.0)


def sizes_of(given: Problem, rule: Activation, tokens: int, before: bool = False, turned: bool = False) -> ChainSizes:
    """What a chain for up to so many tokens is compiled for."""
    (experts, _, hidden), inner = given.w_in.shape, given.w_out.shape[2]
    dtype, *biases = (
        "" if t is None else str(t.dtype).removeprefix("torch.") for t in (given.x, given.b_in, given.b_out)
    )
    packed = [(w.bits, w.group) if isinstance(w, ExpertCodes) else () for w in (given.w_in, given.w_out)]
    return ChainSizes(
        experts, given.ids.shape[1], hidden, inner, tokens, dtype, rule, before, *biases, *packed, turned=turned
    )


def computed(sizes: ChainSizes, given: Problem, sm: int = 80, tile: Tile | None = SMALL) -> Tensor:
    """What the chain makes of a problem; runs where kernels are interpreted."""
    w_out = given.w_out.transpose(1, 2).contiguous() if sizes.turned else given.w_out
    known = {
        "x": given.x,
        "ids": given.ids.int(),
        "route_weights": given.weights,
        "b_in": given.b_in,
        "b_out": given.b_out,
    }
    for side, w in (("in", given.w_in), ("out", w_out)):
        known |= {f"w_{side}": w.values, f"s_{side}": w.scale} if isinstance(w, ExpertCodes) else {f"w_{side}": w}
    for kernel in kernels(sizes, sm, tile):
        known |= _run(kernel, known, len(given.x))
    return known["out"]


def _run(kernel: Kernel, known: dict[str, Any], tokens: int) -> dict[str, Tensor]:
    made = {m.name: torch.empty([s.of(tokens) for s in m.shape], dtype=getattr(torch, m.dtype)) for m in kernel.outputs}
    for tensor in made.values():
        tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    arguments = dict(kernel.launch.arguments)
    places = [key for key, value in arguments.items() if isinstance(value, Tensor)]
    arguments |= dict(zip(places, [*(known[name] for name in kernel.inputs), *made.values()], strict=True))
    arguments |= {name: size.of(tokens) for name, size in kernel.numbers.items()}
    start(kernel.launch.kernel, tuple(size.of(tokens) for size in kernel.grid), **arguments, **kernel.launch.options)
    return made


def block(folder: Path, sm: int = 90, **changes: Any) -> dict[str, Any]:
    """A compiled block of 6 experts in half precision with biases, and the tensors that its network has."""
    sizes = replace(ChainSizes(6, 2, 32, 24, 40, "float16", Activation(), b_in="float16", b_out="float16"), **changes)
    weight_names = {name: name for name in ("w_in", "w_out", "b_in", "b_out")}
    ends = {
        "x": "x",
        "ids": "ids",
        "weights": "weights",
        "y": "y",
        "weights_of": weight_names,
        "top_k": 2,
        "hidden": 32,
    }
    (found,), _ = compile_chains([{**ends, "sizes": asdict(sizes), "packed": {}, "sm": sm}], folder)
    half = {
        "x": (1, -1, 32),
        "weights": (1, -1, 2),
        "w_in_output": (6, 48, 32),
        "w_out_output": (6, 32, 24),
        "b_in_output": (6, 48),
        "b_out_output": (6, 32),
    }
    return {
        **found,
        "tensors": {**{name: ["float16", shape] for name, shape in half.items()}, "ids": ["int64", (1, -1, 2)]},
    }
