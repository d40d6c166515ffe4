"""What weights travel over, and how long that takes at the least."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from moec.errors import MoecError
from moec.planning.formats import Format, stored_bytes
from moec.planning.shape import Shape
from moec.registry import did_you_mean

USUAL = ("nvme", "10gbe", "100gbe")  # where nobody says from where a model comes
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(b|B)/s")
_FORM = "write its rate as 7GB/s (bytes) or 25Gb/s (bits)"


@dataclass(frozen=True)
class Link:
    """A disk, a network or a bus.

    Attributes:
        name: as it was asked for.
        rate: GB/s in one direction.
        what: what it is, in words.
    """

    name: str
    rate: float
    what: str

    def seconds(self, count: float) -> float:
        """How long so many bytes take at the least."""
        return count / (self.rate * 1e9)


@dataclass(frozen=True)
class Loading:
    """A model's weights on their way to a device.

    Attributes:
        format: of the weights.
        bytes: of all of them.
        link: what they travel over. rate: of it, in GB/s.
        seconds: at the least: bytes over the rate.
    """

    format: str
    bytes: int
    link: str
    rate: float
    seconds: float


@cache
def links() -> dict[str, Link]:
    """Every link that has a name."""
    raw = tomllib.loads(files("moec.planning").joinpath("links.toml").read_text("utf-8"))
    return {name: Link(name, entry["rate"], entry["what"]) for name, entry in raw.items()}


def find_link(text: str, option: str = "--link") -> Link:
    """The link of this name, or of the rate that the text gives. Raises M202 with the nearest names, M201 for a rate of
    0."""
    name = text.lower().replace("-", "").replace(" ", "")
    if name in links():
        return links()[name]
    found = _RATE.fullmatch(text.strip())
    if not found:
        raise MoecError("M202", f"no link is called {text!r}", option, f"{_FORM}; {did_you_mean(name, list(links()))}")
    bits = 8 if found[3] == "b" else 1
    rate = float(found[1]) * {"K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3}[found[2]] / bits
    if not rate:
        raise MoecError("M201", f"nothing travels at {text!r}", option, _FORM)
    return Link(text.strip(), rate, "as given")


def loadings(shape: Shape, formats: Sequence[Format], over: Sequence[Link]) -> tuple[Loading, ...]:
    """How long the weights take to arrive, by format and link."""
    sizes = [(format.name, sum(stored_bytes(shape.tensors, format).values())) for format in formats]
    return tuple(Loading(name, size, link.name, link.rate, link.seconds(size)) for name, size in sizes for link in over)
