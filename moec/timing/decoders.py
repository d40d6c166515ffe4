"""Time decoders beside each other as their users meet them: how soon the first token comes, and how fast the others
follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.generation import clocked, generate, is_decoder
from moec.program.decoder_signature import SEQUENCE
from moec.timing.engines import growth_bytes, preparations, rotated

SIZES = {"batch": 1, SEQUENCE: 128}


@dataclass(frozen=True)
class DecoderTiming:
    """One engine's figures.

    Attributes:
        engine: its name.
        runs: how many generations were timed.
        first_token_ms: median time from the prompt to the first new token.
        prefill_tokens_per_s: tokens of the prompts a second, at that time.
        decode_tokens_per_s: tokens of all rows a second after the first, at the median time of a token.
        p50_ms, p90_ms, p99_ms: percentiles of the time of a token after the first, over all runs.
        prefill_ratio, decode_ratio: median over the rounds of (first engine's time / this one's): above 1 this one is
            faster.
        decode_ratio_p10, decode_ratio_p90: its spread.
        growth_bytes: the peak of resident memory in the warm-up, above what was resident before it.
        prepared: see `Engine.prepared`; it is in none of the times.
    """

    engine: str
    runs: int
    first_token_ms: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    prefill_ratio: float
    decode_ratio: float
    decode_ratio_p10: float
    decode_ratio_p90: float
    growth_bytes: int
    prepared: str = ""


@dataclass(frozen=True)
class DecoderBenchmark:
    """Decoders timed beside each other, on the same prompts, in the same process. Ratios are against the first one.

    Attributes:
        sizes: `batch`, `sequence` (tokens of the prompt), and `new` tokens of a run.
    """

    timings: tuple[DecoderTiming, ...]
    sizes: dict[str, int]
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        head = (
            f"batch {self.sizes['batch']}, {self.sizes[SEQUENCE]} + {self.sizes['new']} tokens, {self.threads} threads"
        )
        names = (
            f"{'engine':<24}{'prefill':>10}{'ratio':>7}{'1st token':>11}{'decode':>10}{'ratio':>7}   p10-p90   "
            f"{'p50':>8}{'p90':>8}{'p99':>8}{'memory':>10}"
        )
        units = (
            f"{'':<24}{'tokens/s':>10}{'':>7}{'ms':>11}{'tokens/s':>10}{'':>7}             "
            f"{'ms':>8}{'ms':>8}{'ms':>8}{'MiB':>10}"
        )
        return "\n".join([head, names, units, *map(_line, self.timings), *preparations(self.timings)])


def bench_decoders(
    engines: Sequence[Engine],
    sizes: Mapping[str, int] | None = None,
    max_tokens: int = 32,
    runs: int = 10,
    warmup: int = 1,
) -> DecoderBenchmark:
    """Time engines that write text.

    In each round every engine continues the same prompt once, in a rotating order, so that a change of the machine's
    speed meets all of them alike. A token's time is what a user waits for it: choosing it is included.

    Args:
        engines: those to compare; the first is what the ratios refer to.
        sizes: `batch` (1 by default) and `sequence`, the length of the prompt (128).
        max_tokens: new tokens of a run, 2 or more.
        runs, warmup: timed and untimed runs of each.

    Raises:
        MoecError: M201 without engines, runs, tokens or for an unknown size, M211 when an engine is no decoder.
    """
    unknown = sorted({*(sizes or {})} - {*SIZES})
    if unknown:
        raise MoecError(
            "M201",
            f"no dimension is called {unknown[0]!r}",
            "moec bench",
            "sizes of a decoder are batch and sequence; others need --forward",
        )
    if not engines or runs < 1 or max_tokens < 2:
        raise MoecError("M201", "nothing to time", "moec bench", "give at least one engine, one run and two tokens")
    if not all(map(is_decoder, engines)):
        other = next(e.name for e in engines if not is_decoder(e))
        raise MoecError("M211", "it writes no text", other, "compare forward passes: --forward")
    chosen = {**SIZES, **(sizes or {})}
    prompt = torch.randint(0, 2, (chosen["batch"], chosen[SEQUENCE]), generator=torch.Generator().manual_seed(0))
    clocks = [partial(_seconds, engine, prompt, max_tokens) for engine in engines]
    growth = [growth_bytes(clock, warmup) for clock in clocks]
    times = np.array([rotated(clocks, r) for r in range(runs)])  # [runs, engines, tokens]
    timings = [_timing(e.name, times[:, i], times[:, 0], growth[i], prompt) for i, e in enumerate(engines)]
    timings = [replace(t, prepared=e.prepared) for t, e in zip(timings, engines, strict=True)]
    return DecoderBenchmark(tuple(timings), {**chosen, "new": max_tokens}, torch.get_num_threads())


def _seconds(engine: Engine, prompt: Tensor, max_tokens: int) -> list[float]:
    """Seconds of every new token."""
    return [seconds for _, seconds in clocked(generate(engine, prompt, max_tokens=max_tokens))]


def _timing(name: str, seconds: np.ndarray, first: np.ndarray, growth: int, prompt: Tensor) -> DecoderTiming:
    """Figures from `[runs, tokens]` seconds of this engine and of the first one."""
    batch, prefill, decode = prompt.shape[0], seconds[:, 0], seconds[:, 1:]
    p50, p90, p99 = (float(p) for p in np.percentile(decode, (50, 90, 99)))
    low, middle, high = (
        float(p) for p in np.percentile(np.median(first[:, 1:], 1) / np.median(decode, 1), (10, 50, 90))
    )
    return DecoderTiming(
        name,
        len(seconds),
        float(np.median(prefill)) * 1e3,
        prompt.numel() / float(np.median(prefill)),
        batch / p50,
        p50 * 1e3,
        p90 * 1e3,
        p99 * 1e3,
        float(np.median(first[:, 0] / prefill)),
        middle,
        low,
        high,
        growth,
    )


def _line(t: DecoderTiming) -> str:
    decode = (
        f"{t.decode_tokens_per_s:>10.1f}{t.decode_ratio:>7.2f}   {t.decode_ratio_p10:.2f}-{t.decode_ratio_p90:.2f} "
    )
    figures = f"{t.prefill_tokens_per_s:>10.1f}{t.prefill_ratio:>7.2f}{t.first_token_ms:>11.2f}{decode}"
    return (
        f"{t.engine[:23]:<24}{figures}{t.p50_ms:>8.2f}{t.p90_ms:>8.2f}{t.p99_ms:>8.2f}{t.growth_bytes / 2**20:>10.1f}"
    )
