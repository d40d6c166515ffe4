"""How fast an engine was, kept in its folder: what `moec bench --save` writes and the page shows.

A manifest is the same for equal inputs, and a time never is, so times have a file of their own. It names the engine's
files by a hash: what was measured of an engine that was built anew since counts no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec

from moec.files.regular import read_bytes
from moec.report.artefacts import SPEED_FILE, Artefact, parts

FORMAT: Literal["moec bench 1"] = "moec bench 1"


@dataclass(frozen=True)
class Phase:
    """Times of one phase: `forward`, `prefill` (to the first new token) or `decode` (each token after it).

    Attributes:
        p50_ms, p90_ms, p99_ms: percentiles.
        per_s: tokens a second at the median; samples, where an input has no length.
        times_ms: every time, in the order in which they were measured.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    per_s: float
    times_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Speed:
    """One measurement of one engine.

    Attributes:
        kind: `forward` or `text`. what: its sizes, in words.
        runs, warmup: timed and untimed runs.
        machine, versions, threads, at: see `moec.timing.circumstances`.
        own_bytes, peak_bytes: see `moec.timing.contenders.Memory`.
        phases: by name.
    """

    kind: str
    what: str
    runs: int
    warmup: int
    machine: str
    versions: dict[str, str]
    threads: int
    at: str
    own_bytes: int | None
    peak_bytes: int
    phases: dict[str, Phase]


@dataclass(frozen=True)
class _File:
    format: Literal["moec bench 1"]
    engine: str
    measured: tuple[Speed, ...]


def read_speeds(folder: Path, artefacts: Sequence[Artefact]) -> tuple[Speed, ...]:
    """What was measured of the engine with these files, newest first; nothing where the file is missing, is not moec's
    or belongs to another engine."""
    found = _read(folder)
    return found.measured if found and found.engine == _hash(artefacts) else ()


def speeds_with(new: Speed, folder: Path, artefacts: Sequence[Artefact]) -> str:
    """The content of the file with one more measurement; of the same thing on the same machine only the newest stays.

    Raises:
        FileExistsError: when there is a file of that name that moec did not write.
    """
    if (folder / SPEED_FILE).exists() and not is_speed_file(folder):
        raise FileExistsError(str(folder / SPEED_FILE))
    old = read_speeds(folder, artefacts)
    kept = [s for s in old if (s.kind, s.what, s.machine) != (new.kind, new.what, new.machine)]
    content = _File(FORMAT, _hash(artefacts), (new, *kept))
    return msgspec.json.format(msgspec.json.encode(asdict(content)), indent=1).decode() + "\n"


def is_speed_file(folder: Path) -> bool:
    """Whether a folder holds such a file, and moec wrote it."""
    return _read(folder) is not None


def _read(folder: Path) -> _File | None:
    try:
        found = msgspec.json.decode(read_bytes(folder / SPEED_FILE), type=_File)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return found if all(_could_be(speed) for speed in found.measured) else None


def _could_be(speed: Speed) -> bool:
    """Whether a measurement has the phases of its kind, and nothing in it took no time."""
    names = {"text": {"prefill", "decode"}, "forward": {"forward"}}.get(speed.kind)
    times = (t for p in speed.phases.values() for t in (p.p50_ms, p.p90_ms, p.p99_ms, p.per_s, *p.times_ms))
    return speed.phases.keys() == names and all(t > 0 for t in times)


def _hash(artefacts: Sequence[Artefact]) -> str:
    lines = sorted(f"{item.name} {item.sha256}" for item in parts(artefacts))
    return sha256("\n".join(lines).encode()).hexdigest()
