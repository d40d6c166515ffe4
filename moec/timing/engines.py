"""Time engines beside each other: interleaved runs, percentiles, ratios. A figure of one run on one machine says
nothing by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.conditions import nearest
from moec.program.decoder_signature import HELD
from moec.program.program import Input
from moec.program.signature import Sample
from moec.progress import Progress
from moec.proof.sizes import verification_sizes
from moec.registry import did_you_mean
from moec.report.speed import Phase
from moec.timing.benchmark import Benchmark, Measured, Moment
from moec.timing.circumstances import circumstances
from moec.timing.contenders import Contender, Memory, contenders, warmed_up
from moec.timing.ratio import Ratio, confidence_of, of_first, ratio_of

Result = TypeVar("Result")
FORWARD = "forward"


@dataclass(frozen=True)
class Timing(Measured):
    """One engine's figures.

    Attributes:
        p50_ms, p90_ms, p99_ms: percentiles of a run's time.
        samples_per_s: rows of the first dimension a second, at the median. tokens_per_s: the same times the length;
            None without one.
        ratio: how many times as fast as the first engine, see `moec.timing.ratio`.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    samples_per_s: float
    tokens_per_s: float | None
    ratio: Ratio

    @property
    def ratios(self) -> dict[str, Ratio]:
        return {FORWARD: self.ratio}

    def phases(self) -> dict[str, Phase]:
        return {FORWARD: Phase(self.p50_ms, self.p90_ms, self.p99_ms, self.tokens_per_s or self.samples_per_s)}


class ForwardBenchmark(Benchmark):
    """Engines run forward, on the same inputs."""

    kind: ClassVar[str] = FORWARD

    @property
    def head(self) -> str:
        return ", ".join(f"{name} {size}" for name, size in self.sizes.items()) or "fixed sizes"

    @property
    def unit(self) -> str:
        return "tokens" if self.timings[0].tokens_per_s else "samples"


def bench_engines(
    engines: Sequence[Engine | Contender],
    sample: Sample | None = None,
    sizes: Mapping[str, int] | None = None,
    runs: int = 30,
    warmup: int = 3,
    versions: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> ForwardBenchmark:
    """Time engines on one input.

    In each round every engine runs once, in a rotating order, so that a change of the machine's speed meets all of them
    alike.

    Args:
        engines: those to compare; the first is what the ratios refer to.
        sample: the input. By default ones for masks, counting positions, and random others, of `sizes`.
        sizes: of the dynamic dimensions, for the default input.
        runs, warmup: timed and untimed runs of each.
        versions: of the runtimes, for the record.
        progress: is told of the warm-up and of every round, between the times.

    Raises:
        MoecError: M201 without engines or runs, M211 when an engine doesn't take the input.
    """
    if not engines or runs < 1:
        raise MoecError("M201", "nothing to time", "moec bench", "give at least one engine and one run")
    all_of = contenders(engines)
    first = all_of[0].engine
    chosen = sizes_of(first.inputs, sizes or {}) if sample is None else _measured(first.inputs, sample)
    if not sizes and sample is None:  # what nobody asked for is what the engine was made for
        chosen = nearest(first.conditions, chosen) or chosen
    sample = sample if sample is not None else default_sample(first.inputs, chosen)
    clocks = [partial(_seconds, c.engine, sample) for c in all_of]
    memory, times = timed(all_of, clocks, runs, warmup, progress or Progress())
    batch, length = (*[*chosen.values()][:2], None, None)[:2]
    sure = confidence_of(len(all_of) - 1)
    timings = tuple(
        _timing(c, times[:, i], ratio_of(times[:, 0], times[:, i], sure) if i else of_first(runs), memory[i],
                batch or 1, length)
        for i, c in enumerate(all_of)
    )  # fmt: skip
    moments = tuple(
        Moment(c.name, r, FORWARD, 0, 1e3 * float(times[r, i])) for r in range(runs) for i, c in enumerate(all_of)
    )
    return ForwardBenchmark(timings, chosen, warmup, moments, circumstances(versions))


def sizes_of(inputs: Sequence[Input], given: Mapping[str, int]) -> dict[str, int]:
    """A size for every dynamic dimension: what is given, else batch 1, nothing in the cache, and lengths of 128. Raises
    M201 for an unknown name."""
    names = list(verification_sizes(inputs)[0])
    unknown = [n for n in given if n not in names]
    if unknown:
        raise MoecError(
            "M201",
            f"no dimension is called {unknown[0]!r}",
            "moec bench",
            did_you_mean(unknown[0], [*names], f"the dynamic dimensions are {', '.join(names) or 'none'}"),
        )
    return {n: given.get(n, 0 if n in HELD else 1 if k == 0 else 128) for k, n in enumerate(names)}


def default_sample(inputs: Sequence[Input], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """An input of these sizes that every model takes: masks of ones, counting positions, ids below 2, normal floats."""
    from moec.frontend.domain import Domain, sample_input

    generator = torch.Generator().manual_seed(0)
    sample = {}
    for spec in inputs:
        kind = "position" if "position" in spec.name else "number"
        value = sample_input(spec, Domain(kind, 2), sizes, generator)  # type: ignore[arg-type]
        sample[spec.name] = torch.ones_like(value) if "mask" in spec.name else value
    return sample


def _measured(inputs: Sequence[Input], sample: Sample) -> dict[str, int]:
    return {
        d: int(size)
        for i in inputs
        for d, size in zip(i.shape, sample[i.name].shape, strict=True)
        if isinstance(d, str)
    }


def timed(
    all_of: Sequence[Contender], clocks: Sequence[Callable[[], Any]], runs: int, warmup: int, progress: Progress
) -> tuple[list[Memory], np.ndarray]:
    """Warm every engine up, then run all of them in rounds. Returns the memory of each, and what the clocks gave:
    `[runs, engines, …]`."""
    progress.stage("warm up")
    memory = [warmed_up(c, clock, warmup) for c, clock in zip(all_of, clocks, strict=True)]
    progress.done(f"{len(all_of)} engines, {warmup} runs each")
    progress.stage("time")
    times = []
    for number in range(runs):
        times.append(rotated(clocks, number))
        progress.advance(number + 1, runs, what="rounds")
    progress.done(f"{runs} rounds")
    return memory, np.array(times)


def rotated(runs: Sequence[Callable[[], Result]], number: int) -> list[Result]:
    """The result of each, in their order, called in one that rotates with the round's number."""
    found = {(k + number) % len(runs): runs[(k + number) % len(runs)]() for k in range(len(runs))}
    return [found[i] for i in range(len(runs))]


def _seconds(engine: Engine, sample: Sample) -> float:
    start = time.perf_counter()
    engine(**sample)
    return time.perf_counter() - start


def _timing(of: Contender, seconds: np.ndarray, ratio: Ratio, memory: Memory, batch: int, length: int | None) -> Timing:
    p50, p90, p99 = (float(p) for p in np.percentile(seconds, (50, 90, 99)))
    tokens = batch * length / p50 if length else None
    ms = (p50 * 1e3, p90 * 1e3, p99 * 1e3)
    return Timing(of.name, len(seconds), memory, of.engine.prepared, *ms, batch / p50, tokens, ratio)
