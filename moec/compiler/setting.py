"""How one setting of a compilation is declared: what it takes, how that is read from what a user wrote, and how it is
written as plain data. Imports nothing slow: the command line is made from these."""

from __future__ import annotations

import dataclasses
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moec.errors import MoecError
from moec.registry import did_you_mean
from moec.targets.target import Target
from moec.workers.place import Place

if TYPE_CHECKING:
    from moec.pipeline.pipeline import Pipeline

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?) ?(?P<unit>|b|[kmgt](|b|ib))")
_KEY = "setting"  # of a dataclass field's metadata


class Kind(ABC):
    """What a setting takes.

    Attributes:
        expected: in words, for the error message.
        code: of the error.
    """

    expected: str
    code: str = "M201"

    @abstractmethod
    def read(self, value: Any) -> Any:
        """The value from plain data, from a user's object, or from what `read` gave. Raises ValueError or MoecError."""

    def write(self, value: Any) -> Any:
        """The value as JSON's types, which `read` takes back."""
        return value

    def advice(self, value: Any) -> str:
        """What to give in place of a value that was refused."""
        return f"give {self.expected}"


class Whole(Kind):
    """A whole number of at least `low` that 64 bits hold."""

    def __init__(self, low: int) -> None:
        self.low, self.expected = low, f"a whole number from {low} to 2**63 - 1"

    def read(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral) or not self.low <= int(value) < 2**63:
            raise ValueError
        return int(value)


class Real(Kind):
    """A finite number of at least `low`, or `above` it."""

    def __init__(self, low: float = 0.0, above: bool = False) -> None:
        self.low, self.above = low, above
        self.expected = f"a finite number {'above' if above else 'of at least'} {low:g}"

    def read(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        number = float(value)
        if not math.isfinite(number) or number < self.low or (self.above and number == self.low):
            raise ValueError
        return number


class Choice(Kind):
    """One of a few names."""

    def __init__(self, names: tuple[str, ...], code: str = "M201") -> None:
        self.names, self.code, self.expected = names, code, f"one of {', '.join(names)}"

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise ValueError
        return value

    def advice(self, value: Any) -> str:
        return did_you_mean(value, list(self.names)) if isinstance(value, str) else super().advice(value)


class Switch(Kind):
    """Yes or no."""

    expected = "true or false"

    def read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value


class Name(Kind):
    """A text, which names a file as the user did."""

    expected = "a text that is not empty"

    def read(self, value: Any) -> str:
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError
        return str(value)


class Folder(Kind):
    """A place to write to."""

    expected = "the name of a folder"

    def read(self, value: Any) -> Path:
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError
        return Path(value)

    def write(self, value: Any) -> Any:
        return None if value is None else str(value)


class File(Folder):
    """A file to write."""

    expected = "the name of a file"


class Size(Kind):
    """An amount of memory in bytes: a number, or a text with a unit. KB, MB, GB are powers of ten; KiB, MiB, GiB, and
    K, M, G alone, are powers of two."""

    expected = "an amount of memory, e.g. 16GiB"

    def read(self, value: Any) -> int:
        found = _SIZE.fullmatch(str(value).strip().lower())
        if isinstance(value, bool) or not isinstance(value, str | Integral) or found is None:
            raise ValueError
        unit = found["unit"]
        power = " kmgt".index(unit[:1].replace("b", " ") or " ")
        size = int(float(found["number"]) * (1000 if unit[1:] == "b" else 1024) ** power)
        if not 0 < size < 2**63:
            raise ValueError
        return size


class WorkersText(Kind):
    """Who does long work, by its text."""

    expected = "local:N, N processes of this machine, or ray://HOST:PORT, a cluster that runs, e.g. local:4"

    def read(self, value: Any) -> Place:
        if not isinstance(value, str | Place):
            raise ValueError
        return Place.parse(str(value))

    def write(self, value: Any) -> Any:
        return None if value is None else str(value)


class Names(Kind):
    """Several texts."""

    expected = "a list of texts"

    def read(self, value: Any) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ValueError
        return tuple(value)

    def write(self, value: Any) -> Any:
        return list(value)


class TargetText(Kind):
    """A target, by its text."""

    expected = "a target, e.g. onnxruntime:cuda,precision=fp16"

    def read(self, value: Any) -> Target:
        if not isinstance(value, str | Target):
            raise ValueError
        return Target.parse(str(value))

    def write(self, value: Any) -> Any:
        return str(value)


class PassList(Kind):
    """A pipeline: its text, or several, or TOML's tables."""

    expected = "passes, as a text or as tables [[pass]], with two brackets"

    def read(self, value: Any) -> Pipeline:
        from moec.pipeline.notation import check_options

        pipeline = self._pipeline(value)
        for item in pipeline:
            check_options(item)
        return pipeline

    def _pipeline(self, value: Any) -> Pipeline:
        from moec.pipeline.pipeline import Pipeline

        if isinstance(value, Pipeline):
            return value
        if isinstance(value, str):
            return Pipeline.parse(value)
        if not isinstance(value, list | tuple):
            raise ValueError
        return Pipeline.parse(", ".join(value)) if all(isinstance(v, str) for v in value) else Pipeline.of(value)

    def write(self, value: Any) -> Any:
        return str(value)


@dataclass(frozen=True)
class Setting:
    """One setting, everywhere.

    Attributes:
        name: of the field of `Options`, the keyword of `moec.compile`, and the entry of the manifest.
        kind: what it takes.
        default: as plain data; None where it may be left open, which `shown` then explains.
        help: what it means, for the command line.
        flag: on the command line. key: in a TOML file.
        shown: the default in words.
        recorded: whether the manifest keeps it.
        metavar: what the command line's help calls its value; empty for the usual word.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    flag: str
    key: str
    shown: str
    recorded: bool
    metavar: str = ""

    def read(self, value: Any, where: str = "") -> Any:
        """The value from plain data or a user's object. Raises M201, or what its kind raises, for an invalid one."""
        if value is None and self.default is None:
            return None
        try:
            return self.kind.read(value)
        except (ValueError, OverflowError):  # the latter for a whole number that no float can hold
            known = isinstance(value, str) and self.kind.code == "M202"
            what = f"no {self.name} is called {value!r}" if known else f"{self.name} cannot be {value!r}"
            raise MoecError(self.kind.code, what, where or self.flag, self.kind.advice(value)) from None


def setting(
    kind: Kind,
    default: Any,
    help: str,
    *,
    flag: str = "",
    key: str = "",
    shown: Any = None,
    recorded: bool = True,
    metavar: str = "",
) -> Any:
    """A dataclass field that declares a setting; flag and key follow from the field's name unless they are given."""
    metadata = {
        "kind": kind,
        "help": help,
        "flag": flag,
        "key": key,
        "shown": shown,
        "recorded": recorded,
        "metavar": metavar,
    }
    return dataclasses.field(default=default, metadata={_KEY: metadata})


def settings_of(cls: Any) -> dict[str, Setting]:
    """The settings that a dataclass declares, by name."""
    return {f.name: _setting_of(f) for f in dataclasses.fields(cls)}


def _setting_of(field: dataclasses.Field[Any]) -> Setting:
    given = field.metadata[_KEY]
    flag, key = given["flag"] or f"--{field.name.replace('_', '-')}", given["key"] or field.name
    default = "" if field.default in (None, (), "") else str(field.default)
    shown = default if given["shown"] is None else str(given["shown"])
    return Setting(
        field.name, given["kind"], field.default, given["help"], flag, key, shown, given["recorded"], given["metavar"]
    )
