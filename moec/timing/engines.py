"""Time engines beside each other: interleaved runs, percentiles, ratios. A figure of one run on one machine says
nothing by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.memory import peak_rss_bytes, reset_peak, rss_bytes
from moec.program.conditions import nearest
from moec.program.decoder_signature import PAST
from moec.program.program import Input
from moec.program.signature import Sample
from moec.proof.sizes import verification_sizes

Result = TypeVar("Result")


@dataclass(frozen=True)
class Timing:
    """One engine's figures.

    Attributes:
        engine: its name.
        runs: how many runs were timed.
        p50_ms, p90_ms, p99_ms: percentiles of a run's time.
        samples_per_s: rows of the first dimension a second, at the median. tokens_per_s: the same times the length;
            None without one.
        ratio: median over the rounds of (first engine's time / this one's): above 1 this one is faster. ratio_p10,
            ratio_p90: its spread.
        growth_bytes: the peak of resident memory in the warm-up, above what was resident before it.
        prepared: see `Engine.prepared`; it is in none of the times.
    """

    engine: str
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    samples_per_s: float
    tokens_per_s: float | None
    ratio: float
    ratio_p10: float
    ratio_p90: float
    growth_bytes: int
    prepared: str = ""


@dataclass(frozen=True)
class Benchmark:
    """Engines timed beside each other, on the same inputs, in the same process. Ratios are against the first one."""

    timings: tuple[Timing, ...]
    sizes: dict[str, int]
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        head = (
            f"{'engine':<24}{'p50 ms':>10}{'p90 ms':>10}{'p99 ms':>10}{'samples/s':>12}{'tokens/s':>12}{'ratio':>8} "
            "  p10-p90"
        )
        rows = [head, *map(_line, self.timings), *preparations(self.timings)]
        return "\n".join([f"{self.sizes or 'fixed sizes'}, {self.threads} threads", *rows])


def bench_engines(
    engines: Sequence[Engine],
    sample: Sample | None = None,
    sizes: Mapping[str, int] | None = None,
    runs: int = 30,
    warmup: int = 3,
) -> Benchmark:
    """Time engines on one input.

    In each round every engine runs once, in a rotating order, so that a change of the machine's speed meets all of them
    alike.

    Args:
        engines: those to compare; the first is what the ratios refer to.
        sample: the input. By default ones for masks, counting positions, and random others, of `sizes`.
        sizes: of the dynamic dimensions, for the default input.
        runs, warmup: timed and untimed runs of each.

    Raises:
        MoecError: M201 without engines or runs, M211 when an engine doesn't take the input.
    """
    if not engines or runs < 1:
        raise MoecError("M201", "nothing to time", "moec bench", "give at least one engine and one run")
    chosen = sizes_of(engines[0].inputs, sizes or {}) if sample is None else _measured(engines[0].inputs, sample)
    if not sizes and sample is None:  # what nobody asked for is what the engine was made for
        chosen = nearest(engines[0].conditions, chosen) or chosen
    sample = sample if sample is not None else default_sample(engines[0].inputs, chosen)
    clocks = [partial(_seconds, engine, sample) for engine in engines]
    growth = [growth_bytes(clock, warmup) for clock in clocks]
    times = np.array([rotated(clocks, r) for r in range(runs)])
    batch, length = (*[*chosen.values()][:2], None, None)[:2]
    timings = [_timing(e.name, times[:, i], times[:, 0], growth[i], batch or 1, length) for i, e in enumerate(engines)]
    timings = [replace(t, prepared=e.prepared) for t, e in zip(timings, engines, strict=True)]
    return Benchmark(tuple(timings), chosen, torch.get_num_threads())


def preparations(timings: Iterable[Any]) -> list[str]:
    """A line for each engine that did something when it was loaded."""
    return [f"{t.engine}: {t.prepared} when it was loaded" for t in timings if t.prepared]


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
            f"the dynamic dimensions are {', '.join(names) or 'none'}",
        )
    return {n: given.get(n, 0 if n == PAST else 1 if k == 0 else 128) for k, n in enumerate(names)}


def default_sample(inputs: Sequence[Input], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """An input of these sizes that every model takes: masks of ones, counting positions, ids below 2, normal floats."""
    from moec.frontend.source import Domain, sample_input

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


def growth_bytes(run: Callable[[], object], times: int) -> int:
    """Run untimed, once at least; returns how far the peak of resident memory rose."""
    before = rss_bytes() if reset_peak() else peak_rss_bytes()
    for _ in range(max(1, times)):
        run()
    return max(0, peak_rss_bytes() - before)


def rotated(runs: Sequence[Callable[[], Result]], number: int) -> list[Result]:
    """The result of each, in their order, called in one that rotates with the round's number."""
    found = {(k + number) % len(runs): runs[(k + number) % len(runs)]() for k in range(len(runs))}
    return [found[i] for i in range(len(runs))]


def _seconds(engine: Engine, sample: Sample) -> float:
    start = time.perf_counter()
    engine(**sample)
    return time.perf_counter() - start


def _timing(
    name: str, seconds: np.ndarray, first: np.ndarray, growth_bytes: int, batch: int, length: int | None
) -> Timing:
    p50, p90, p99 = (float(p) for p in np.percentile(seconds, (50, 90, 99)))
    low, middle, high = (float(p) for p in np.percentile(first / seconds, (10, 50, 90)))
    tokens = batch * length / p50 if length else None
    return Timing(
        name, len(seconds), p50 * 1e3, p90 * 1e3, p99 * 1e3, batch / p50, tokens, middle, low, high, growth_bytes
    )


def _line(t: Timing) -> str:
    tokens = f"{t.tokens_per_s:.0f}" if t.tokens_per_s else "–"
    figures = (
        f"{t.p50_ms:>10.3f}{t.p90_ms:>10.3f}{t.p99_ms:>10.3f}{t.samples_per_s:>12.1f}{tokens:>12}{t.ratio:>8.2f}   "
        f"{t.ratio_p10:.2f}-{t.ratio_p90:.2f}"
    )
    return f"{t.engine[:23]:<24}{figures}"
