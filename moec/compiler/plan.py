"""`moec plan`: a model's cost from its config, whichever source it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from moec.compiler.rehearsals import Rehearsals
from moec.pipeline.pipeline import Pipeline
from moec.planning.estimate import Estimate, estimate
from moec.planning.load import read_load
from moec.planning.serving import Asked
from moec.planning.traffic import Traffic

USUAL = 4096  # tokens of a text where nobody says how many
PACKED = "packed form"  # what rows are called whose weights the passes packed, with the rest in 16 bits


def plan(
    model: str | Path | Rehearsals,
    *,
    formats: Sequence[str] = ("bf16",),
    devices: Sequence[str] = (),
    batches: Sequence[int] = (1,),
    context: int | None = None,
    ranks: Sequence[int] = (),
    versus: str | Path | None = None,
    pipeline: str | Pipeline = "",
    recipes: Mapping[str, str | Pipeline] | None = None,
    state: str = "bf16",
    load: str | Path = "uniform",
    traffic: float | None = None,
    prompt: int = 1024,
    answer: int = 256,
    prices: Mapping[str, float] | None = None,
    links: Sequence[str] = (),
    draft: int = 0,
    offload: Sequence[str] = (),
) -> Estimate:
    """What a model takes in memory and time, from its config alone; files of weights need not be there.

    Args:
        model: a config.json, a folder that holds one, or a hub id in the local cache; or what was captured of one.
        formats, devices, batches, context, ranks: see `moec.planning.estimate.estimate`. Without a context, 4,096
            tokens, or all that the model's positions reach where that is less.
        versus: another model, named likewise.
        pipeline: passes, as for `moec compile`: counts, memory and time are those of the model that they make. They are
            planned, not described a second time: the model is captured without its weights. Where they pack weights,
            `bf16` says only what the rest is in, and its rows are called `packed form`.
        recipes: names that `formats` may hold beside those that are known, with the passes that pack the weights; what
            they leave is in 16 bits. The other model is packed by them too.
        state: format of keys and values: `bf16`, `fp8` or `int8`.
        load: how often experts are taken: `uniform`, `zipf:1.0`, or a file that `moec routers --json` wrote.
        traffic: requests a second, each of `prompt` tokens with `answer` tokens to write.
        prices: of an hour of a device, by its name, in any currency.
        links: what weights are loaded over: `nvme`, `100gbe`, `7GB/s` …
        draft: tokens that speculative decoding proposes at once.
        offload: where experts lie that are not on the device: `ram`, `disk` or a link.

    Raises:
        MoecError: M204, M206 or M209 where the config cannot be read, M201 for a model that has none; M201 and M202 see
            `estimate`; with passes what a capture, and their planning, say.
    """
    paper = model if isinstance(model, Rehearsals) else Rehearsals(model)
    shape = paper.after(pipeline)
    chosen = {name: recipe for name, recipe in (recipes or {}).items() if name in formats}
    packed = {name: paper.after(_both(pipeline, recipe)) for name, recipe in chosen.items()}
    if shape.packed and versus is None:  # the other model is not packed: both are named by what the rest is in
        formats = [PACKED if name == "bf16" else name for name in formats]
        packed[PACKED] = shape
    beside = Rehearsals(versus) if versus is not None else None
    other = beside.shape if beside else None
    others = {name: beside.after(recipe) for name, recipe in chosen.items()} if beside else {}
    longest = min(m.longest or USUAL for m in (shape, other) if m is not None)
    tokens = min(USUAL, longest) if context is None else context
    asked = Asked(
        paper.model,
        read_load(str(load), shape),
        None if traffic is None else Traffic(traffic, prompt, answer),
        prices or {},
        links,
        draft,
        offload,
    )
    return estimate(shape, formats, devices, batches, tokens, ranks, other, packed, asked, state, others)


def _both(first: str | Pipeline, then: str | Pipeline) -> Pipeline:
    one, other = (Pipeline.parse(p) if isinstance(p, str) else p for p in (first, then))
    return one + other
