"""What engines showed beside each other: circumstances, a table, what of it is more than noise, every single time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

from moec.proof.digits import four_digits
from moec.report.charts import UNITS
from moec.report.speed import Phase, Speed
from moec.shown import aligned, size_of
from moec.timing.circumstances import Circumstances, circumstances
from moec.timing.contenders import Memory
from moec.timing.ratio import Ratio

_NAME = 40  # columns of the longest name of a row; longer ones lose their beginning
Cells = tuple[str, ...]


class Moment(NamedTuple):
    """One measured time. `phase`: `forward`, `prefill` (to the first new token) or `decode` (each token after it);
    `number`: of the token in its text, 0 for the others."""

    engine: str
    round: int
    phase: str
    number: int
    ms: float


class Table(NamedTuple):
    """What a table shows: the first column names engines, the others are figures."""

    title: str
    columns: Cells
    rows: Sequence[Cells]


@dataclass(frozen=True)
class Measured:
    """What every kind of benchmark knows of one engine.

    Attributes:
        engine: the name of its row.
        runs: how many runs were timed.
        memory: resident for it.
        prepared: see `Engine.prepared`; it is in none of the times.
    """

    engine: str
    runs: int
    memory: Memory
    prepared: str

    @property
    def ratios(self) -> dict[str, Ratio]:
        """What is compared with the first engine, by phase."""
        raise NotImplementedError

    def phases(self) -> dict[str, Phase]:
        """Percentiles and rate of each phase."""
        raise NotImplementedError


@dataclass(frozen=True)
class Benchmark:
    """Engines timed beside each other, on the same inputs, in the same process. Ratios are against the first one.

    Attributes:
        timings: one an engine, in their order.
        sizes: of the input, by name of the dimension.
        warmup: untimed runs of each.
        moments: every time that was measured.
        where: machine and versions.
        kind: `forward` or `text`.
    """

    kind: ClassVar[str]
    timings: tuple[Any, ...]
    sizes: dict[str, int]
    warmup: int
    moments: tuple[Moment, ...] = field(repr=False)
    where: Circumstances = field(default_factory=circumstances)

    @property
    def threads(self) -> int:
        """Of PyTorch."""
        return self.where.threads

    @property
    def head(self) -> str:
        """What was run, in a line."""
        raise NotImplementedError

    def tables(self) -> list[Table]:
        """A table for each phase, and one of the memory."""
        phases = [self._phase(name) for name in (self.timings[0].phases() if self.timings else ())]
        rows = [(t.engine, _size(t.memory.own_bytes), _size(t.memory.peak_bytes)) for t in self.timings]
        return [*phases, Table("memory", ("engine", "own", "peak of the process"), rows)]

    def _phase(self, name: str) -> Table:
        rows = []
        for timing in self.timings:
            phase, ratio = timing.phases()[name], timing.ratios[name]
            times = tuple(f"{ms:.4g}" for ms in (phase.p50_ms, phase.p90_ms, phase.p99_ms))
            rows.append((timing.engine, *times, f"{phase.per_s:,.1f}", *ratio_cells(ratio)))
        columns = ("engine", "p50 ms", "p90 ms", "p99 ms", f"{self.unit}/s", "speed", "interval")
        return Table(f"{name}, time of {UNITS[name]}", columns, rows)

    @property
    def unit(self) -> str:
        """What is counted a second."""
        return "tokens"

    @property
    def findings(self) -> list[str]:
        """What each engine is beside the first, a line each: faster, slower, the same, or nothing shown."""
        first = self.timings[0].engine if self.timings else ""
        return [
            f"{t.engine}: {phase} {ratio.beside(first)}" for t in self.timings[1:] for phase, ratio in t.ratios.items()
        ]

    @property
    def preparations(self) -> list[str]:
        """A line for each engine that did something when it was loaded."""
        return [f"{t.engine}: {t.prepared} when it was loaded" for t in self.timings if t.prepared]

    @property
    def headlines(self) -> list[str]:
        """Where it was measured, and what."""
        runs = f"{self.timings[0].runs} runs" if self.timings else "no runs"
        return [*str(self.where).splitlines(), f"{self.head}; {runs} of each after {self.warmup} to warm up"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the single times."""
        plain = asdict(self)
        plain.pop("moments")
        plain["kind"] = self.kind
        for row, timing in zip(plain["timings"], self.timings, strict=True):
            row["verdicts"] = {phase: ratio.verdict for phase, ratio in timing.ratios.items()}
        return _without_nan(plain)

    def speed_of(self, engine: str) -> Speed:
        """One engine's part, to be kept with it."""
        timing = next(t for t in self.timings if t.engine == engine)
        times: dict[str, list[float]] = {}
        for moment in self.moments:
            if moment.engine == engine:
                times.setdefault(moment.phase, []).append(four_digits(moment.ms))
        phases = {name: replace(phase, times_ms=tuple(times[name])) for name, phase in timing.phases().items()}
        where, memory = self.where, timing.memory
        return Speed(self.kind, self.head, timing.runs, self.warmup, where.machine, where.versions, where.threads,
                     where.at, memory.own_bytes, memory.peak_bytes, phases)  # fmt: skip

    def __str__(self) -> str:
        tables = [
            line for table in self.tables() for line in (table.title, *with_figures([table.columns, *table.rows]), "")
        ]
        lines = [*self.headlines, "", *tables, *self.findings, *self.preparations]
        return "\n".join(lines).rstrip()


def with_figures(rows: Sequence[Cells]) -> list[str]:
    """Rows as lines: names to the left, figures to the right."""
    short = [(("…" + row[0][1 - _NAME :] if len(row[0]) > _NAME else row[0]), *row[1:]) for row in rows]
    return aligned(short, range(1, len(short[0])))


def _size(size_bytes: int | None) -> str:
    """A size for a table; a dash for one that is not known."""
    return "–" if size_bytes is None else size_of(size_bytes)


def ratio_cells(ratio: Ratio) -> Cells:
    """The median and the interval of a ratio for a table."""
    if ratio.first:
        return "1.00", ""
    known = ratio.verdict != "too few runs"
    return f"{ratio.median:.2f}", f"{ratio.low:.2f}–{ratio.high:.2f}" if known else "–"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: an interval that there is not is null."""
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and value != value else value
