"""Optimization profiles: for which sizes of the dynamic dimensions an engine is built, and which of them fits a call.

A decoder gets `decode` (one new token a text) and `prefill` (many), any other model with a dynamic batch `single` and
`batch`: kernels are chosen for each profile, and what is best for one token is far from that for a thousand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from moec.backends.tensorrt.fixed_signature import VIEW
from moec.backends.tensorrt.options import PREFIX
from moec.errors import MoecError
from moec.program.conditions import Condition, broken
from moec.program.decoder_signature import PAST, SEQUENCE
from moec.program.signature import PLUS, Input, dynamic_dimensions, identifier

LARGEST = {"batch": 8, SEQUENCE: 1024, PAST: 4096}  # unless the target says max_NAME=N
OTHER = 1024
HELD = (PAST, VIEW)  # dimensions that count what is there already, not the tokens of a call
Range = tuple[int, int, int]


@dataclass(frozen=True)
class Profile:
    """One range of shapes.

    Attributes:
        name: `decode`, `prefill`, `single` or `batch`.
        sizes: dimension -> smallest, tuned for, largest.
        shapes: input with a dynamic dimension -> its shape at these three.
    """

    name: str
    sizes: dict[str, Range]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]

    @property
    def tokens(self) -> int:
        """The most tokens of one call: the product of all largest sizes but the cache's."""
        return prod(largest for name, (_, _, largest) in self.sizes.items() if name not in HELD)

    @property
    def tuned(self) -> int:
        """The tokens of the call that the profile is tuned for."""
        return prod(best for name, (_, best, _) in self.sizes.items() if name not in HELD)

    @property
    def length(self) -> int:
        """The most new tokens of one text: the same without the first dimension."""
        first = next(iter(self.sizes), "")
        return self.tokens // self.sizes[first][2] if first else 1

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether these sizes of dimensions, by name, are inside; of a fixed cache, whether it has the places."""
        if VIEW in self.sizes and PAST in sizes:
            sizes = {**sizes, VIEW: max(1, sizes[PAST] + sizes.get(SEQUENCE, 1))}
        return all(low <= sizes.get(name, low) <= high for name, (low, _, high) in self.sizes.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, which `of` reads."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Profile:
        """From plain data."""
        shapes = {name: tuple(tuple(shape) for shape in shapes) for name, shapes in data["shapes"].items()}
        return cls(data["name"], {name: tuple(sizes) for name, sizes in data["sizes"].items()}, shapes)  # type: ignore[arg-type]  # JSON has lists

    def row(self) -> dict[str, str]:
        """For tables: the profile's name, and each dimension as `smallest … tuned for … largest`."""
        return {
            "profile": self.name,
            **{name: " … ".join(map(str, dict.fromkeys(sizes))) for name, sizes in self.sizes.items()},
        }


def profiles(
    inputs: Sequence[Input],
    limits: Mapping[str, int],
    optimize_for: str = "latency",
    conditions: Sequence[Condition] = (),
) -> list[Profile]:
    """The profiles of a signature; none where all is static.

    Args:
        inputs: the program's.
        limits: largest size of dimensions, by name; `LARGEST` and `OTHER` for the rest.
        optimize_for: `latency` tunes for a batch of 1, `throughput` for the largest.
        conditions: the program's; no profile holds sizes of one dimension that they exclude.
    """
    names = dynamic_dimensions(inputs)
    limits = {**limits, VIEW: capacity(limits)}
    most = {name: limits.get(name, LARGEST.get(name, OTHER)) for name in names}
    whole = {name: _range(name, largest, optimize_for, first=k == 0) for k, (name, largest) in enumerate(most.items())}
    whole = {name: _within(name, sizes, conditions) for name, sizes in whole.items()}
    most = {name: sizes[2] for name, sizes in whole.items()}
    if not whole:
        return []
    held = next((name for name in HELD if name in whole), None)
    if held and SEQUENCE in whole:
        least = 0 if held == PAST else 1
        few, many = (
            {**whole, SEQUENCE: (1, 1, 1), held: (least, max(1, most[held] // 4), most[held])},
            {**whole, held: (least, 0 if held == PAST else whole[SEQUENCE][1], most[held])},
        )
        decode = _profile("decode", few, inputs)
        return [decode, _profile("prefill", many, inputs)] if most[SEQUENCE] > 1 else [decode]
    first = names[0]
    single = _profile("single", {**whole, first: (1, 1, 1)}, inputs)
    return [single, _profile("batch", whole, inputs)] if most[first] > 1 else [single]


def capacity(limits: Mapping[str, int]) -> int:
    """Places of a fixed cache: the longest past and the most new tokens."""
    return sum(limits.get(name, LARGEST[name]) for name in (PAST, SEQUENCE))


def _range(name: str, largest: int, optimize_for: str, first: bool) -> Range:
    if first:
        return 1, 1 if optimize_for == "latency" else largest, largest
    return 0 if name == PAST else 1, max(1, largest // 4), largest


def _within(name: str, sizes: Range, conditions: Sequence[Condition]) -> Range:
    """The part of a range from the least to the largest size that the conditions on this dimension alone allow."""
    alone = [c for c in conditions if c.names == {name}]
    low, tuned, high = sizes
    held = [n for n in range(low, high + 1) if broken(alone, {name: n}) is None] if alone else [low, high]
    return (held[0], min(max(tuned, held[0]), held[-1]), held[-1]) if held else sizes


def _profile(name: str, sizes: dict[str, Range], inputs: Sequence[Input]) -> Profile:
    at = [{dim: sizes[dim][k] for dim in sizes} for k in range(3)]
    shapes = {
        i.name: (i.resolve(at[0]), i.resolve(at[1]), i.resolve(at[2]))
        for i in inputs
        if any(isinstance(d, str) for d in i.shape)
    }
    return Profile(name, sizes, shapes)


def ends(found: Sequence[Profile]) -> tuple[Condition, ...]:
    """Up to which sizes a plan runs at all, as conditions that a proof keeps to and an engine asks for: the ends of its
    widest profile. A fixed cache states its own."""
    sizes = found[-1].sizes if found else {}
    named = [(identifier(name), low, high) for name, (low, _, high) in sizes.items() if name != VIEW]
    return tuple(
        Condition(f"{low} <= {name} <= {high}" if low > 1 else f"{name} <= {high}") for name, low, high in named
    )


def fitting(found: Sequence[Profile], inputs: Sequence[Input], shapes: Mapping[str, Sequence[int]], engine: str) -> int:
    """The index of the first profile that holds all shapes; 0 where there are none.

    Raises:
        MoecError: M211 when no profile does, with the range of the widest.
    """
    if not found:
        return 0
    for index, profile in enumerate(found):
        if all(_outside(profile, spec, shapes[spec.name]) is None for spec in inputs):
            return index
    spec, dim = next(
        (spec, dim) for spec in inputs if (dim := _outside(found[-1], spec, shapes[spec.name])) is not None
    )
    low, _, high = found[-1].shapes[spec.name]
    fix = f"pass {list(low)} to {list(high)}, or compile with the target's option {PREFIX}{dim.split(PLUS)[0]}=N"
    raise MoecError(
        "M211", f"input {spec.name!r} is {list(shapes[spec.name])}, outside of the engine's profiles", engine, fix
    )


def _outside(profile: Profile, spec: Input, shape: Sequence[int]) -> str | None:
    """The dimension that a profile does not hold."""
    if spec.name not in profile.shapes:
        return None
    low, _, high = profile.shapes[spec.name]
    return next((str(dim) for dim, a, n, b in zip(spec.shape, low, shape, high, strict=True) if not a <= n <= b), None)


def limits_of(options: Mapping[str, str]) -> dict[str, int]:
    """The options `max_NAME=N` of a target."""
    return {key.removeprefix(PREFIX): int(value) for key, value in options.items() if key.startswith(PREFIX)}
