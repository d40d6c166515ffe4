"""What a backend declares of its targets' text: devices, and options with what each takes and means. Imports nothing
slow: shells complete from it, and `moec explain` says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from moec import registry


@dataclass(frozen=True)
class Count:
    """What an option takes that is a whole number.

    Attributes:
        unit: what is counted, `N` for mere numbers.
        low, high: the least and the most.
    """

    unit: str = "N"
    low: int = 1
    high: int = 2**31 - 1

    def __str__(self) -> str:
        return self.unit

    def takes(self, text: str) -> bool:
        """Whether a text is such a number, in the digits 0 to 9."""
        return re.fullmatch(r"[0-9]{1,12}", text) is not None and self.low <= int(text) <= self.high


@dataclass(frozen=True)
class Option:
    """One option of a target's text.

    Attributes:
        form: the words that it takes, or a `Count`.
        default: what holds where it is not said, in the option's own words or in a few others.
        meaning: what it does, in a sentence or two.
    """

    form: tuple[str, ...] | Count
    default: str
    meaning: str

    def __str__(self) -> str:
        """What it takes, in a few signs: `fp32|fp16`, `MiB`."""
        return str(self.form) if isinstance(self.form, Count) else "|".join(self.form)

    @property
    def words(self) -> tuple[str, ...]:
        """The words that it takes; none of one that takes a number."""
        return () if isinstance(self.form, Count) else self.form

    def takes(self, text: str) -> bool:
        """Whether a text is a value of it."""
        return self.form.takes(text) if isinstance(self.form, Count) else text in self.form


# by name; in a name, a part in capitals stands for any word: `max_DIMENSION` is `max_batch` too
Declared = Mapping[str, Option]


def declared_by(backend: str) -> tuple[tuple[str, ...], Declared]:
    """Devices and options of a backend; its class is loaded, with torch, only where its module does not hold them."""
    module = registry.module("backends", backend)
    if hasattr(module, "OPTIONS") and hasattr(module, "DEVICES"):
        return module.DEVICES, module.OPTIONS
    cls = registry.find("backends", backend)
    return cls.devices, cls.declared
