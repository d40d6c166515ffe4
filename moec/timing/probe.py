"""`moec probe`: how fast this machine reads, multiplies and passes operators on, in the engines that moec makes.

Everything is built once and timed in rounds, each of them through all there is, so that what else the machine does at a
moment meets all alike. Of each time the lower quartile over the rounds counts; `probe_fit` works out what they come to.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moec.execution.engine import Engine
from moec.execution.generation import continuation
from moec.execution.machine import cores, machine
from moec.planning.probed import Record, runtime_version
from moec.progress import Progress
from moec.timing.probe_engines import FORMS, Block, Form, Gates, Mixtures, Small, chain, engine, gates, mixtures
from moec.timing.probe_fit import CallTime, ExpertTime, NumberTime, ProductTime, Times, fit, quiet
from moec.version import __version__

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
MIB = 2**20
ENOUGH, MOST_RUNS = 0.03, 4  # seconds of a case in a round, and how often it is run for them
TOKENS = 5  # that a small decoder writes in a round
DRAWS, ALIKE = 2, 64  # of rows for a mixture, each with its own experts; of so many rows one draw is like another


@dataclass(frozen=True)
class Sizes:
    """How much is timed.

    Attributes:
        forms: of weights.
        least_bytes: of the weights that an engine goes through; None: one and a half times the largest cache.
        widths: of square matrices. rows: at which they are timed.
        blocks: mixtures. tokens: at which they are timed.
        gates: width and number of what stands between products; at the same rows.
        decoders: for what is neither. lengths, texts: tokens of one prompt; texts, and tokens behind each.
        rounds: through all of it.
    """

    forms: tuple[Form, ...] = FORMS
    least_bytes: int | None = None
    widths: tuple[int, ...] = (768, 2048)
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 512)
    blocks: tuple[Block, ...] = (
        Block(1024, 1024, 8, 2),
        Block(512, 256, 32, 4),
        Block(384, 768, 16, 2),
        Block(768, 384, 64, 8),
    )
    tokens: tuple[int, ...] = (1, 2, 4, 8, 16, 64, 512)
    decoders: tuple[Small, ...] = (Small(2, 8), Small(8, 2), Small(4, 4, normed=True))
    gates: tuple[int, int] = (2048, 10)
    lengths: tuple[int, ...] = (16, 64, 128, 256, 512, 1024)
    texts: tuple[tuple[int, int], ...] = (
        (1, 32),
        (1, 256),
        (1, 1024),
        (4, 64),
        (8, 256),
        (16, 64),
        (32, 32),
        (32, 128),
    )
    rounds: int = 5

    @property
    def least(self) -> int:
        """Bytes of the weights of an engine, at least."""
        return largest_cache() * 3 // 2 if self.least_bytes is None else self.least_bytes

    @property
    def memory_bytes(self) -> int:
        """What a probe takes at most: all engines are held at once, beside what reading is timed with. The runtime
        keeps weights once, packed (1.0 times their bytes were measured); making engines took 0.7 GiB more."""
        engines = sum(
            form.bytes_a_weight * weights
            for form in self.forms
            for weights in (
                *(self.chained(form, width) * width * width for width in self.widths),
                *(self.mixed(form, block) * block.experts * block.expert for block in self.blocks),
            )
        )
        return int(1.1 * (engines + self.buffer_bytes)) + 1024 * MIB

    @property
    def buffer_bytes(self) -> int:
        """What reading is timed with."""
        return 2 * max(self.least, 4 * MIB)

    def chained(self, form: Form, width: int) -> int:
        """How many matrices of a width are chained in an engine."""
        return max(2, int(self.least / (width * width * form.bytes_a_weight)) + 1)

    def mixed(self, form: Form, block: Block) -> int:
        """How many mixtures of a shape are in an engine."""
        return max(1, int(self.least / (block.experts * block.expert * form.bytes_a_weight)) + 1)


@dataclass
class Probe:
    """Engines that are ready to be timed.

    Args:
        folder: an empty one, for the engines' files.
        sizes: how much is timed.
        progress: is told what is made.
    """

    folder: Path
    sizes: Sizes = field(default_factory=Sizes)
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self._times: Times = defaultdict(list)
        self._made = 0
        self._buffer = np.ones(self.sizes.buffer_bytes // 4, np.float32)
        self._clocks: list[Callable[[], None]] = []
        torch.manual_seed(0)
        for form in self.sizes.forms:
            self.progress.stage(f"products and experts, {form.name}")
            self._clocks += [self._products(form, width) for width in self.sizes.widths]
            self._clocks += [self._experts(form, block) for block in self.sizes.blocks]
        self._clocks.append(self._numbers(Gates(*self.sizes.gates)))
        for small in self.sizes.decoders:
            self.progress.stage(f"a decoder of {small.layers} layers")
            self._clocks.append(self._calls(small))

    def round(self) -> None:
        """Time everything once."""
        self._read()
        with torch.inference_mode():
            for clock in self._clocks:
                clock()

    def record(self) -> Record:
        """What the rounds so far come to."""
        made = datetime.now(UTC).isoformat(timespec="seconds")
        versions = {"moec": __version__, "onnxruntime": runtime_version(), "torch": str(torch.__version__)}
        read = {name: 1 / quiet(found) for name, found in self._reads().items()}
        return Record(made, machine(), versions, read, **fit(self._times))

    # ------------------------------------------------------------------ what is timed
    def _read(self) -> None:
        before = torch.get_num_threads()
        for threads in sorted({1, *(2**k for k in range(1, 10) if 2**k < cores()), cores()}):
            torch.set_num_threads(threads)
            seconds = _clocked(torch.from_numpy(self._buffer).sum)
            self._times[threads].append(seconds / self._buffer.nbytes)
        torch.set_num_threads(before)

    def _reads(self) -> dict[str, list[float]]:
        return {str(key): found for key, found in self._times.items() if isinstance(key, int)}

    def _products(self, form: Form, width: int) -> Callable[[], None]:
        count = self.sizes.chained(form, width)
        ready = engine(chain(width, count)(), form, self._place())
        given = {rows: torch.randn(rows, width) for rows in self.sizes.rows}

        def clock() -> None:
            for rows, x in given.items():
                self._times[ProductTime(form.name, rows, width)] += [t / count for t in self._runs(ready, x)]

        return clock

    def _numbers(self, model: Gates) -> Callable[[], None]:
        ready = engine(gates(model)(), FORMS[0], self._place())
        given = {rows: torch.randn(rows, 2 * model.width) for rows in self.sizes.rows}

        def clock() -> None:
            for rows, x in given.items():
                self._times[NumberTime(rows, model.numbers)] += self._runs(ready, x)

        return clock

    def _experts(self, form: Form, block: Block) -> Callable[[], None]:
        count = self.sizes.mixed(form, block)
        model = Mixtures(block, count)
        ready = engine(mixtures(model, block)(), form, self._place())
        given = [torch.randn(tokens, block.hidden) for tokens in self._draws()]
        loads = [tuple(sorted(model.loads(x).flatten().tolist())) for x in given]

        def clock() -> None:
            for x, load in zip(given, loads, strict=True):
                key = ExpertTime(form.name, block.expert, block.hidden, block.inner, count, load)
                self._times[key] += self._runs(ready, x)

        return clock

    def _draws(self) -> list[int]:
        return [t for t in self.sizes.tokens for _ in range(DRAWS if t < ALIKE else 1)]

    def _calls(self, small: Small) -> Callable[[], None]:
        ready = engine(small.program(self._place()), FORMS[0], self._place())
        rng = np.random.default_rng(0)

        def clock() -> None:
            for length in self.sizes.lengths:
                self._times[CallTime("prompt", small, 1, length)].append(self._text(ready, rng, small, 1, length)[0])
            for texts, length in self.sizes.texts:
                first, *tokens = self._text(ready, rng, small, texts, length, TOKENS)
                self._times[CallTime("token", small, texts, length)] += tokens[1:]
                if texts > 1:
                    self._times[CallTime("prompts", small, texts, length)].append(first)

        return clock

    def cold(self) -> None:
        """Leave nothing in the caches, as the weights of other layers do."""
        self._buffer.sum()

    def _runs(self, ready: Engine, x: torch.Tensor) -> list[float]:
        """The times of an engine that is run several times where that is short: what disturbs the machine seldom meets
        all of them. The first warms up."""
        found = [_clocked(lambda: ready.run({"x": x}))]
        while (sum(found) < ENOUGH and len(found) < MOST_RUNS) or len(found) < 2:
            self.cold()
            found.append(_clocked(lambda: ready.run({"x": x})))
        return found[1:]

    def _text(
        self, ready: Engine, rng: np.random.Generator, small: Small, texts: int, length: int, tokens: int = 0
    ) -> list[float]:
        """The times of prompts, and of a token of all texts at once, as often as it is asked."""
        text, found = continuation(ready), []
        for n in range(tokens + 1):
            ids = rng.integers(3, small.vocabulary, (texts, 1 if n else length))
            mask = np.ones((texts, length + n), np.int64)
            self.cold()
            found.append(_clocked(lambda: text.step(ids, mask)))  # noqa: B023  # it is called at once
        return found

    def _place(self) -> Path:
        self._made += 1
        return self.folder / str(self._made)


def probe(folder: Path, sizes: Sizes | None = None, progress: Progress | None = None) -> Record:
    """Measure this machine in a few minutes; see `Probe`."""
    progress = progress or Progress()
    made = Probe(folder, sizes or Sizes(), progress)
    for n in range(made.sizes.rounds):
        progress.stage(f"round {n + 1} of {made.sizes.rounds}")
        made.round()
    return made.record()


def largest_cache() -> int:
    """Bytes of the largest cache of a core, within 16 and 192 MiB; 32 MiB where the system does not say it."""
    found = [p.read_text().strip() for p in _CACHES.glob("index*/size")] if _CACHES.exists() else []
    sizes = [int(s[:-1]) * 1024 for s in found if s.endswith("K") and s[:-1].isdigit()]
    return min(max([*sizes, 16 * MIB]), 192 * MIB) if sizes else 32 * MIB


def _clocked(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
