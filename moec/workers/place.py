"""Which workers a user asks for: `local:N` or `ray://HOST:PORT`. Imports nothing slow."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(r"local:(?P<count>[1-9]\d{0,4})|(?P<address>ray://(\[[0-9a-fA-F:.]+\]|[\w.-]+):(?P<port>\d{1,5}))")


@dataclass(frozen=True)
class Place:
    """Where workers are.

    Attributes:
        count: processes on this machine, that live as long as the compile; 0 for those of a cluster.
        address: of a cluster that runs already, `ray://HOST:PORT`; empty for this machine.
    """

    count: int = 0
    address: str = ""

    @classmethod
    def parse(cls, text: str) -> Place:
        """From what a user writes; `str` gives it back. Raises ValueError for anything else."""
        found = _FORM.fullmatch(text.strip())
        if found is None or not 0 < int(found["port"] or 1) < 2**16:
            raise ValueError(f"{text!r} names no workers")
        return cls(int(found["count"] or 0), found["address"] or "")

    def __str__(self) -> str:
        return self.address or f"local:{self.count}"
