"""First day: what an engine is called with, and how far its answers are from another engine's.

Every text of a batch, every output, and of a cache the places that a call has written, are judged by themselves: a
median over all of them would hide one text that is wrong throughout. In half precision a token whose experts nearly tie
may rightly take others. So nine tokens of ten must be near, in most of five draws of inputs: what is wrong is wrong in
each of them. In float32 every token must be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import torch
from first_day_errors import ranked
from torch import Tensor

from moec.execution.engine import Engine
from moec.program.decoder_signature import IDS, MASK, PAST
from moec.program.signature import dynamic_dimensions

DRAWS = 5
PROMPT = 24
CHUNKS = PROMPT, 3, *(1,) * 10  # new tokens of each step of a text; gpt-oss's window here has 8 places
NEAR = {False: 1.0, True: 0.9}  # of a text's tokens, by half precision or not
UNIT = "worst text's relative error"
Errors = dict[tuple[str, int], float]  # by output and text


def inputs_of(engine: Engine, tokens: int, past: int, seed: int) -> dict[str, Tensor]:
    """Random inputs of these lengths for two rows; the first row's first two tokens are padding in a prompt."""
    random = torch.Generator().manual_seed(seed)
    sizes = dict.fromkeys(dynamic_dimensions(engine.inputs), tokens) | {"batch": 2, PAST: past}
    given = {}
    for spec in engine.inputs:
        shape = spec.resolve(sizes)
        if spec.dtype.is_floating_point:
            given[spec.name] = torch.randn(shape, generator=random).to(spec.dtype)
        else:
            given[spec.name] = torch.randint(3, 64, shape, generator=random).to(spec.dtype)
    if MASK in given:
        rows, length = given[MASK].shape[0], past + tokens if IDS in given and past else given[MASK].shape[1]
        given[MASK] = torch.ones(rows, length, dtype=given[MASK].dtype)
        if tokens > 2 and IDS in given:
            given[MASK][0, :2] = 0
    return given


def is_decoder(engine: Engine) -> bool:
    return any(i.name == IDS for i in engine.inputs) and any(PAST in i.shape for i in engine.inputs)


def write(engine: Any, seed: int) -> dict[str, Tensor]:
    """Two texts as a user writes them, one with padding: a prompt, some tokens at once, then one by one. Returns
    `logits`, `[2, steps, vocabulary]`, of each step's last token."""
    given = inputs_of(engine, sum(CHUNKS), 0, seed)
    ids, mask = given[IDS].numpy(), given[MASK].numpy()
    text, done, found = engine.continuation(), 0, []
    for new in CHUNKS:
        done += new
        found.append(torch.from_numpy(text.step(ids[:, done - new : done], mask[:, :done]).copy()))
    return {"logits": torch.stack(found, 1)}


def whole(engine: Engine, seed: int) -> dict[str, Tensor]:
    """What `write` returns, from one call on the whole texts, without a cache."""
    logits = engine.run(inputs_of(engine, sum(CHUNKS), 0, seed))["logits"]
    return {"logits": logits[:, torch.tensor(CHUNKS).cumsum(0) - 1]}


def errors(
    got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], mask: Tensor | None, new: int, near: float
) -> Errors:
    """Of each output and each of its texts the relative error that `near` of its tokens stay within; infinite where
    anything is not finite.

    Args:
        got, wanted: outputs by name, `[texts, tokens, ...]` or `[tokens, size]`; caches `[texts, heads, places, size]`.
        mask: `[texts, places]`, 0 where there is padding, which is nobody's; None where there is none.
        new: how many of a cache's last places the call has written.
        near: a share, at most 1.
    """
    found = {}
    for name, right in wanted.items():
        for text, (a, b) in enumerate(texts(got[name].cpu().double(), right.cpu().double(), mask, new)):
            if b.numel():
                found[name, text] = ranked(a, b, near)
    return found


def texts(a: Tensor, b: Tensor, mask: Tensor | None, new: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Both values' tokens `[tokens, ...]`, text by text."""
    if b.dim() == 4:
        a, b = (x.transpose(1, 2)[:, -new:] for x in (a, b))
    if b.dim() < 3:
        yield a, b
        return
    for text in range(len(b)):
        real = slice(None) if mask is None else mask[text, -b.shape[1] :].bool()
        yield a[text, real], b[text, real]


def worst(draw: Callable[[int], Errors], half: bool) -> float:
    """Over all outputs and texts, of some draws of inputs: the worst of all in float32, in half precision the worst
    median."""
    found = [draw(seed) for seed in range(DRAWS)]
    return max((median if half else max)([errors[key] for errors in found]) for key in found[0])
