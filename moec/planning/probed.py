"""What `moec probe` found out about this machine: the record that plans for the device `cpu` rest on.

A record says which machine and which versions it was made with. One of another machine, or of another version of moec
or of the runtime, says nothing about this one and is not used.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from moec.errors import MoecError
from moec.execution.machine import Machine, machine
from moec.files import kept
from moec.files.regular import read_bytes
from moec.version import __version__

FILE, MOST_BYTES = "probe.json", 2**20
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")  # the packages that hold it
FORMAT = 2  # of the record


class Products(msgspec.Struct, frozen=True):
    """Matrix products in one form; seconds.

    Attributes:
        rows: at which they were timed, ascending. a_weight: for each weight of a matrix that so many rows go through.
        an_operator: for each product, and `several` more where more than one row goes through it.
        a_number: for each number that goes in or comes out.
    """

    rows: tuple[int, ...]
    a_weight: tuple[float, ...]
    an_operator: float
    several: float
    a_number: float

    def seconds(self, rows: float, weights: float, numbers: float, operators: int = 1) -> float:
        """Of so many products, which have so many weights together, and `numbers` columns and rows of matrices."""
        once = operators * (self.an_operator + (self.several if rows > 1 else 0.0))
        return once + rows * numbers * self.a_number + weights * grown(self.rows, self.a_weight, rows)


class Experts(msgspec.Struct, frozen=True):
    """Mixtures in one form; seconds.

    Attributes:
        rows: of one expert, ascending. a_weight: for each weight of an expert that has so many.
        a_block, an_expert: for a whole mixture, and for each expert that has rows. idle: for each expert that there is.
        a_number: for each number of a row that an expert gets. an_inner: for each that it activates between products.
    """

    rows: tuple[int, ...]
    a_weight: tuple[float, ...]
    a_block: float
    an_expert: float
    idle: float
    a_number: float
    an_inner: float


class Calls(msgspec.Struct, frozen=True):
    """What is neither products nor experts, in one kind of call; seconds.

    Attributes:
        lengths: tokens of a prompt, or behind a token, ascending. a_score: of that length, for each layer and number
            of a query that is multiplied with one of a key.
        a_call, a_layer: for every call, and every layer in it. a_head: for each layer, and each head (of queries and of
            keys) of a token that goes through it.
        a_number: for each layer and number of the cache that is there in the end.
        a_norm, a_normed: for each layer that normalizes queries and keys, and each head of a token in it.
    """

    lengths: tuple[int, ...]
    a_score: tuple[float, ...]
    a_call: float
    a_layer: float
    a_head: float
    a_number: float
    a_norm: float
    a_normed: float


class Record(msgspec.Struct, frozen=True):
    """One run of `moec probe`.

    Attributes:
        made: when, in UTC (ISO 8601). machine: where. versions: package -> version.
        read: bytes a second that so many threads read, from memory that is larger than every cache.
        products, experts: by form: `fp32`, `int4`, `int4 rounded`, `int8 rounded`.
        calls: by kind: one `token` a text, one `prompt`, several `prompts`.
        elementwise: seconds for each number that goes into an operator which multiplies no matrices.
        low, high: between these shares of what the record says lay nine in ten of the times that it was made from, and
            a tenth more for what a sum of parts leaves out.
        format: of the record.
    """

    made: str
    machine: Machine
    versions: dict[str, str]
    read: dict[str, float]
    products: dict[str, Products]
    experts: dict[str, Experts]
    calls: dict[str, Calls]
    elementwise: float
    low: float
    high: float
    format: int = FORMAT

    @property
    def bandwidth(self) -> float:
        """Bytes a second, by as many threads as read most."""
        return max(self.read.values())

    def to_json(self) -> bytes:
        """As it is kept."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)


def shares(places: tuple[int, ...], place: float) -> list[float]:
    """How much each of the places counts for a value at another one, in straight lines between them; before the first
    and past the last it is theirs."""
    place = min(max(place, places[0]), places[-1])
    n = min(max(bisect_left(places, place), 1), len(places) - 1) if len(places) > 1 else 0
    found = [0.0] * len(places)
    share = (place - places[n - 1]) / (places[n] - places[n - 1]) if n else 1.0
    found[n], found[n - 1] = share, 1 - share if n else share
    return found


def between(places: tuple[int, ...], values: tuple[float, ...], place: float) -> float:
    """A value between those that were measured."""
    return sum(share * value for share, value in zip(shares(places, place), values, strict=True))


def grown(places: tuple[int, ...], values: tuple[float, ...], place: float) -> float:
    """The same where a value grows as its place does past the last one."""
    return between(places, values, place) * max(place / places[-1], 1.0)


def runtime_version() -> str:
    """That of ONNX Runtime here; empty where there is none."""
    for name in RUNTIMES:
        with suppress(PackageNotFoundError):
            return version(name)
    return ""


def place() -> Path | None:
    """Where the record lies, in the folder of the weight cache; None where that is switched off."""
    folder = kept.folder()
    return None if folder is None else folder / FILE


def keep(record: Record) -> Path | None:
    """Write the record in the place of an earlier one; None where nothing is kept, or the disk says no."""
    path = place()
    if path is None:
        return None
    new = path.with_name(f"{FILE}.{secrets.token_hex(4)}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.write_bytes(record.to_json())
        new.replace(path)
    except OSError:
        return None
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
    return path


def find_record() -> Record:
    """The record of this machine.

    Raises:
        MoecError: M201 where there is none, it cannot be read, or it was made elsewhere, by another moec or runtime.
    """
    path = place()
    if path is None:
        fix = "set MOEC_CACHE_DIR to a folder, then moec probe"
        raise MoecError("M201", "nothing is kept of this machine: the cache is off", "--device cpu", fix)
    if not path.is_file():
        raise MoecError("M201", "this machine has not been measured", "--device cpu", "moec probe")
    try:
        record = msgspec.json.decode(read_bytes(path, MOST_BYTES), type=Record)
    except (OSError, MoecError, msgspec.MsgspecError) as error:
        raise MoecError("M201", "what was measured of this machine cannot be read", str(path), "moec probe") from error
    stale = _stale(record)
    if stale:
        raise MoecError("M201", f"what was measured {stale}", str(path), "moec probe")
    return record


def _stale(record: Record) -> str:
    here = machine()
    if record.format != FORMAT:
        return "is of another version of moec"
    if record.machine != here:
        return f"is of another machine: {record.machine}, not {here}"
    for package, name, now in (("moec", "moec", __version__), ("onnxruntime", "ONNX Runtime", runtime_version())):
        found = record.versions.get(package, "")
        if found != now:  # moec's engines are timed: another moec may make others
            return f"is of {name} {found or 'of no version'}, not {now}"
    return ""
