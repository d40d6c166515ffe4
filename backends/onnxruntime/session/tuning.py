"""Choose CUDA's kernels for experts when an engine is loaded, not when the first caller waits.

The runtime times every kernel that it has for a layer's products when it first meets a number of tokens, which it
rounds up to a power of two: with two layers 2,604 launches for each such number, where a call has 84. What it finds
holds as long as the session. One call of each size is what it takes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.decoder_signature import HELD, IDS, MASK, SEQUENCE, cache_inputs
from moec.program.program import dynamic_dimensions


def tune(engine: Engine, tokens: int) -> str:
    """Call an engine with 1, 2, 4 ... tokens, up to `tokens`, as far as it was made for such sizes and the memory goes.

    Returns:
        What was done, in words, for tables; empty where nothing was.

    Raises:
        MoecError: M301 where a library is missing without which the engine does not run.
    """
    start, done = time.perf_counter(), 0
    for sizes in filter(engine.holds, _sizes(engine, tokens)):
        try:
            _call(engine, sizes)
        except MoecError as error:
            if error.code.startswith("M3"):
                raise
            break
        except Exception:  # too long for the memory, or for a table of positions: shorter ones are chosen for
            if done == 0:
                raise
            break
        done = sizes.get(SEQUENCE, 1)
    seconds = time.perf_counter() - start
    return f"kernels chosen for up to {done} tokens a call in {seconds:.1f} s" if done else ""


def _sizes(engine: Engine, tokens: int) -> Iterator[Mapping[str, int]]:
    """Of the calls: one text, of a power of two of tokens, with an empty cache; without texts there is one call."""
    names = dynamic_dimensions(engine.inputs)
    at, length = {name: 0 if name in HELD else 1 for name in names}, 1
    while length <= tokens:
        yield {**at, **({SEQUENCE: length} if SEQUENCE in names else {})}
        if SEQUENCE not in names:
            return
        length *= 2


def _call(engine: Engine, sizes: Mapping[str, int]) -> None:
    text = getattr(engine, "continuation", None)
    if text is not None and cache_inputs(engine.inputs) and {i.name for i in engine.inputs} >= {IDS, MASK}:
        ids = np.zeros((1, sizes[SEQUENCE]), np.int64)
        text().step(ids, np.ones_like(ids))
        return
    engine.run({i.name: torch.ones(i.resolve(sizes), dtype=i.dtype) for i in engine.inputs})
