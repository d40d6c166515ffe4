"""Time decoders beside each other as their users meet them: how soon the first token comes, and how fast the others
follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.generation import clocked, generate, is_decoder
from moec.program.decoder_signature import SEQUENCE
from moec.progress import Progress
from moec.registry import did_you_mean
from moec.report.speed import Phase
from moec.timing.benchmark import Benchmark, Measured, Moment
from moec.timing.circumstances import circumstances
from moec.timing.contenders import Contender, Memory, contenders
from moec.timing.engines import timed
from moec.timing.ratio import Ratio, confidence_of, of_first, ratio_of

SIZES = {"batch": 1, SEQUENCE: 128}
PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True)
class DecoderTiming(Measured):
    """One engine's figures.

    Attributes:
        first_token_ms: median time from the prompt to the first new token. first_token_p90_ms, first_token_p99_ms:
            its other percentiles.
        prefill_tokens_per_s: tokens of the prompts a second, at the median.
        decode_tokens_per_s: tokens of all rows a second after the first, at the median time of a token.
        p50_ms, p90_ms, p99_ms: percentiles of the time of a token after the first, over all runs.
        prefill_ratio, decode_ratio: how many times as fast as the first engine, see `moec.timing.ratio`. A run's time
            in decode is the median of its tokens'.
    """

    first_token_ms: float
    first_token_p90_ms: float
    first_token_p99_ms: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    prefill_ratio: Ratio
    decode_ratio: Ratio

    @property
    def ratios(self) -> dict[str, Ratio]:
        return {PREFILL: self.prefill_ratio, DECODE: self.decode_ratio}

    def phases(self) -> dict[str, Phase]:
        first = Phase(self.first_token_ms, self.first_token_p90_ms, self.first_token_p99_ms, self.prefill_tokens_per_s)
        later = Phase(self.p50_ms, self.p90_ms, self.p99_ms, self.decode_tokens_per_s)
        return {PREFILL: first, DECODE: later}


class DecoderBenchmark(Benchmark):
    """Decoders that continue the same prompts. `sizes`: `batch`, `sequence` (tokens of the prompt), and `new` tokens of
    a run."""

    kind: ClassVar[str] = "text"

    @property
    def head(self) -> str:
        return f"batch {self.sizes['batch']}, {self.sizes[SEQUENCE]} + {self.sizes['new']} tokens"


def bench_decoders(
    engines: Sequence[Engine | Contender],
    sizes: Mapping[str, int] | None = None,
    max_tokens: int = 32,
    runs: int = 10,
    warmup: int = 1,
    versions: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> DecoderBenchmark:
    """Time engines that write text.

    In each round every engine continues the same prompt once, in a rotating order, so that a change of the machine's
    speed meets all of them alike. A token's time is what a user waits for it: choosing it is included.

    Args:
        engines: those to compare; the first is what the ratios refer to.
        sizes: `batch` (1 by default) and `sequence`, the length of the prompt (128).
        max_tokens: new tokens of a run, 2 or more.
        runs, warmup: timed and untimed runs of each.
        versions: of the runtimes, for the record.
        progress: is told of the warm-up and of every round, between the times.

    Raises:
        MoecError: M201 without engines, runs, tokens or for an unknown size, M211 when an engine is no decoder.
    """
    unknown = sorted({*(sizes or {})} - {*SIZES})
    if unknown:
        raise MoecError(
            "M201",
            f"no dimension is called {unknown[0]!r}",
            "moec bench",
            did_you_mean(unknown[0], [*SIZES], "sizes of a decoder are batch and sequence; others need --forward"),
        )
    if not engines or runs < 1 or max_tokens < 2:
        raise MoecError("M201", "nothing to time", "moec bench", "give at least one engine, one run and two tokens")
    all_of = contenders(engines)
    other = next((c.name for c in all_of if not is_decoder(c.engine)), None)
    if other is not None:
        raise MoecError("M211", "it writes no text", other, "compare forward passes: --forward")
    chosen = {**SIZES, **(sizes or {})}
    prompt = torch.randint(0, 2, (chosen["batch"], chosen[SEQUENCE]), generator=torch.Generator().manual_seed(0))
    clocks = [partial(_seconds, c.engine, prompt, max_tokens) for c in all_of]
    memory, times = timed(all_of, clocks, runs, warmup, progress or Progress())  # [runs, engines, tokens]
    sure = confidence_of(2 * (len(all_of) - 1))
    ratios = [_ratios(times[:, 0], times[:, i], sure) if i else (of_first(runs),) * 2 for i in range(len(all_of))]
    timings = tuple(_timing(c, times[:, i], ratios[i], memory[i], prompt) for i, c in enumerate(all_of))
    sizes_run = {**chosen, "new": max_tokens}
    return DecoderBenchmark(timings, sizes_run, warmup, tuple(_moments(all_of, times)), circumstances(versions))


def _seconds(engine: Engine, prompt: Tensor, max_tokens: int) -> list[float]:
    """Seconds of every new token."""
    return [seconds for _, seconds in clocked(generate(engine, prompt, max_tokens=max_tokens))]


def _ratios(first: np.ndarray, seconds: np.ndarray, sure: float) -> tuple[Ratio, Ratio]:
    """Of prefill and of decode, from `[runs, tokens]` seconds of both engines."""
    decode = [np.median(times[:, 1:], axis=1) for times in (first, seconds)]
    return ratio_of(first[:, 0], seconds[:, 0], sure), ratio_of(decode[0], decode[1], sure)


def _moments(all_of: Sequence[Contender], times: np.ndarray) -> Iterator[Moment]:
    for (r, i, token), seconds in np.ndenumerate(times):
        yield Moment(all_of[i].name, r, DECODE if token else PREFILL, token, 1e3 * float(seconds))


def _timing(
    of: Contender, seconds: np.ndarray, ratios: tuple[Ratio, Ratio], memory: Memory, prompt: Tensor
) -> DecoderTiming:
    """Figures from `[runs, tokens]` seconds."""
    first, first_p90, first_p99 = (float(p) for p in np.percentile(seconds[:, 0], (50, 90, 99)))
    p50, p90, p99 = (float(p) for p in np.percentile(seconds[:, 1:], (50, 90, 99)))
    return DecoderTiming(
        of.name,
        len(seconds),
        memory,
        of.engine.prepared,
        1e3 * first,
        1e3 * first_p90,
        1e3 * first_p99,
        prompt.numel() / first,
        prompt.shape[0] / p50,
        1e3 * p50,
        1e3 * p90,
        1e3 * p99,
        *ratios,
    )
