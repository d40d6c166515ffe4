"""Calls of a CUDA engine without tokens: nothing is to be computed, and the device refuses to compute nothing.

The kernels of `MoE` and `QMoE` are launched with blocks for tokens; with none that is an invalid launch (CUDA error 9).
The CPU's take it. A guard in the graph would be a branch or a copy in every layer of every step, so the engine answers
itself. Other clients get the runtime's error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.program.decoder_signature import cache_inputs, present_name
from moec.program.signature import Input, sizes_of


def without_tokens(
    inputs: Sequence[Input], outputs: Sequence[Input], given: Mapping[str, Tensor], name: str
) -> dict[str, Tensor] | None:
    """The outputs of a call without tokens: empty ones, and the cache as it was. None where there are tokens.

    Args:
        inputs, outputs: the engine's signature. given: tensors by name.
        name: the engine's.

    Raises:
        MoecError: M211 where an output would have to be computed from no token.
    """
    caches = {c.name: c for c in cache_inputs(inputs)}
    if all(given[spec.name].numel() for spec in inputs if spec.name not in caches):
        return None
    sizes, past = sizes_of(inputs, given), {present_name(name): given[name] for name in caches}
    found, device = past, next(iter(given.values())).device
    for spec in (spec for spec in outputs if spec.name not in past):
        shape = spec.resolve(sizes)
        if 0 not in shape:
            fix = "give one token or more"
            raise MoecError("M211", f"CUDA computes no {spec.name!r} of no tokens", name, fix)
        found[spec.name] = torch.zeros(shape, dtype=spec.dtype, device=device)
    return {spec.name: found[spec.name] for spec in outputs}
