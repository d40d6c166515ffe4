"""Which experts are asked for how often: uniformly, by a power law, or as measured on real text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec

from moec.errors import MoecError
from moec.files.regular import read_bytes
from moec.planning.shape import Mixture, Shape
from moec.planning.touched import chances, distinct, distinct_of

FORMS = "write uniform, zipf:1.0, or a file that `moec routers --json` wrote"


@dataclass(frozen=True)
class Load:
    """How often the experts of each layer are taken.

    Attributes:
        name: as it was asked for.
        power: s of a power law, in which the i-th expert's share is in proportion to i^-s; 0 for uniform.
        layers: measured shares of each layer's experts, each layer's summing to 1; empty where nothing was measured.
    """

    name: str = "uniform"
    power: float = 0.0
    layers: tuple[tuple[float, ...], ...] = ()

    @property
    def uniform(self) -> bool:
        """Whether every expert is as likely as any other."""
        return not self.power and not self.layers

    def shares(self, layer: int, mixture: Mixture) -> tuple[float, ...]:
        """The part of all choices that falls on each expert of the mixture with this place."""
        return self.layers[layer] if self.layers else _power_law(mixture.experts, self.power)

    def chances(self, layer: int, mixture: Mixture) -> tuple[float, ...]:
        """The probability of each expert to be among those that one token takes."""
        return _chances(self.shares(layer, mixture), mixture.top_k)

    def distinct(self, layer: int, mixture: Mixture, tokens: float) -> float:
        """Expected number of distinct experts that so many tokens touch."""
        if self.uniform:
            return distinct(mixture.experts, mixture.top_k, tokens)
        return _distinct(self.shares(layer, mixture), mixture.top_k, tokens)

    def elsewhere(self) -> Load:
        """What can be said of another model: the same law; uniform where this one was measured."""
        return Load() if self.layers else self


UNIFORM = Load()
_chances = lru_cache(256)(chances)


@lru_cache(4096)
def _distinct(shares: tuple[float, ...], top_k: int, tokens: float) -> float:
    return distinct_of(_chances(shares, top_k), tokens)


@lru_cache(64)
def _power_law(experts: int, power: float) -> tuple[float, ...]:
    weights = [i**-power for i in range(1, experts + 1)]
    return tuple(w / sum(weights) for w in weights)


def read_load(text: str, shape: Shape) -> Load:
    """The load that `--load` names, for a model.

    Args:
        text: `uniform`, `zipf:S` with S from 0 to 10, or a JSON file `{"layers": [{"layer": name, "load": [n, …]}, …]}`
            with a share or a count for each expert of each mixture, in order.
        shape: the model.

    Raises:
        MoecError: M201 for another form, for a file that does not fit the model, and for a dense model.
    """
    kind, _, power = text.partition(":")
    if text != "uniform" and not shape.mixtures:
        raise MoecError("M201", f"{shape.name} has no experts that a load could be of", "--load", "leave --load out")
    if text == "uniform":
        return UNIFORM
    if kind == "zipf":
        return Load(text, _exponent(power))
    layers = _read(Path(text))
    _check(layers, shape.mixtures, text)
    return Load(text, layers=tuple(tuple(n / sum(layer) for n in layer) for layer in layers))


class _Layer(msgspec.Struct):
    load: list[float]
    layer: str = ""


class _File(msgspec.Struct):
    layers: list[_Layer]


def _exponent(text: str) -> float:
    try:
        power = float(text)
    except ValueError:
        power = math.nan
    if not 0 <= power <= 10:
        raise MoecError("M201", f"{text!r} is no exponent from 0 to 10", "--load", "write it as zipf:1.0")
    return power


def _read(path: Path) -> list[list[float]]:
    try:
        return [each.load for each in msgspec.json.decode(read_bytes(path), type=_File).layers]
    except OSError as error:
        what = f"there is no load {str(path)!r}: {error.strerror or error}"
        raise MoecError("M201", what, "--load", FORMS) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        what = f"the file is no measured load: {error}"
        raise MoecError("M201", what, f"--load {path}", 'its form is {"layers": [{"load": [3, 1, …]}, …]}') from error


def _check(layers: Sequence[Sequence[float]], mixtures: Sequence[Mixture], text: str) -> None:
    where, fix = f"--load {text}", "measure this model: moec routers MODEL --text FILE --json"
    if len(layers) != len(mixtures):
        what = f"the load is of {len(layers)} layers, and the model has {len(mixtures)} mixtures"
        raise MoecError("M201", what, where, fix)
    for place, (layer, mixture) in enumerate(zip(layers, mixtures, strict=True)):
        if len(layer) != mixture.experts:
            what = f"layer {place} has the load of {len(layer)} experts, and the model has {mixture.experts} there"
            raise MoecError("M201", what, where, fix)
        if not all(n >= 0 for n in layer) or not 0 < sum(layer) < math.inf:
            what = f"the load of layer {place} is not made of numbers from 0 on, some of them above it"
            raise MoecError("M201", what, where, fix)
