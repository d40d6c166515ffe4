"""What a capture assumed of its inputs: conditions on their sizes, and the values that an embedding knows.

`torch.export` follows one branch of a model. Where the branch hangs on a size, it states for which sizes it is the
right one. These statements travel with the Program, stand in an engine's files, and every engine asks them of every
call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from torch import Tensor

from moec.errors import MoecError
from moec.program.expression import read
from moec.program.signature import identifier

_FARTHEST = 2**17  # tokens: where bounds are looked for; the longest contexts have as many
_DENSE = 600  # sizes that are tried one by one
_TRIED = 50_000  # combinations of sizes that a search looks at, at most


@dataclass(frozen=True)
class Condition:
    """A relation between sizes of dynamic dimensions, such as `sequence <= 72` or `frames % 4 == 0`.

    Attributes:
        text: the relation, see `moec.program.expression`. A dimension stands in it as Python can write its name
            (`moec.program.signature.identifier`), a sum of dimensions as the sum of its parts.
    """

    text: str

    def __post_init__(self) -> None:
        """Bring the text into its one form. Raises ValueError for one that cannot be read."""
        object.__setattr__(self, "text", read(self.text)[0])

    @property
    def names(self) -> frozenset[str]:
        """The dimensions that it is about."""
        return read(self.text)[1]

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether these sizes satisfy it. A dimension that is not named may be of any size."""
        try:
            return bool(read(self.text)[2](sizes))
        except KeyError:
            known = {identifier(name): size for name, size in sizes.items()}
            return not self.names <= set(known) or self.holds(known)
        except (ArithmeticError, ValueError, TypeError):  # divided by a size of 0: no branch of the model does that
            return False

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Values:
    """The integers that an input may hold, for every element of it, because an embedding has a row for no other.

    Attributes:
        name: of the input.
        low, high: the least and the largest.
    """

    name: str
    low: int
    high: int

    def outside(self, value: Tensor) -> int | None:
        """The value of a tensor that is farthest outside, None when all are known."""
        if not value.numel() or value.is_floating_point():
            return None
        least, largest = (int(v) for v in value.aminmax())
        return least if least < self.low else largest if largest > self.high else None

    def require(self, value: Tensor, where: str) -> None:
        """Raise M214 unless the engine `where` knows every value."""
        found = self.outside(value)
        if found is not None:
            what = f"{self.name} holds {found}, and the model knows {self.low} to {self.high}"
            fix = f"give values from {self.low} to {self.high}; a tokenizer of another model gives others"
            raise MoecError("M214", what, where, fix)

    def __str__(self) -> str:
        return f"{self.low} <= {self.name} <= {self.high}"


@dataclass(frozen=True)
class Assumptions:
    """All that a program assumes, as it stands in an engine's files.

    Attributes:
        sizes: conditions on sizes.
        values: of the inputs that embeddings look up.
    """

    sizes: tuple[Condition, ...] = ()
    values: tuple[Values, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """As JSON can hold it; `of_plain` reads it back."""
        return {
            "sizes": [condition.text for condition in self.sizes],
            "values": [[v.name, v.low, v.high] for v in self.values],
        }

    @classmethod
    def of_plain(cls, data: Any) -> Assumptions:
        """Read `to_plain` back. Raises ValueError for anything else."""
        try:
            sizes = tuple(Condition(text) for text in data["sizes"])
            values = tuple(Values(str(name), int(low), int(high)) for name, low, high in data["values"])
        except (TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"no assumptions of a program: {type(error).__name__}") from error
        return cls(sizes, values)

    def __str__(self) -> str:
        return ", ".join(map(str, (*self.sizes, *self.values)))


def broken(conditions: Iterable[Condition], sizes: Mapping[str, int]) -> Condition | None:
    """The first condition that these sizes do not satisfy."""
    return next((condition for condition in conditions if not condition.holds(sizes)), None)


def require(conditions: Sequence[Condition], sizes: Mapping[str, int], where: str) -> None:
    """Raise M213 unless the engine `where` was made for these sizes."""
    condition = broken(conditions, sizes)
    if condition is None:
        return
    known = {identifier(name): size for name, size in sizes.items()}
    given = ", ".join(f"{name}={known[name]}" for name in sorted(condition.names))
    near = nearest(conditions, known)
    such = ", such as " + ", ".join(f"{n}={near[n]}" for n in sorted(condition.names)) if near else ""
    what = f"the engine holds where {condition}, and was given {given}"
    made = "compile with sample inputs of their size (for TensorRT: with max_NAME=N)"
    fix = f"give sizes for which it holds{such}; run others in PyTorch, or {made}"
    raise MoecError("M213", what, where, fix)


def bounds(conditions: Iterable[Condition]) -> dict[str, list[int]]:
    """For each dimension the sizes where a condition begins or ceases to hold: both neighbours, in order.

    `7 <= frames` gives 6 and 7, `sequence <= 72` gives 72 and 73. Of a condition on several dimensions, the bounds of
    each are found where the others have small sizes.
    """
    found: dict[str, set[int]] = {}
    for condition in conditions:
        for name in condition.names:
            found.setdefault(name, set()).update(_bounds_of(condition, name))
    return {name: sorted(sizes) for name, sizes in found.items()}


def limits(conditions: Iterable[Condition], name: str) -> tuple[int, int | None]:
    """The least and the largest size of a dimension that the conditions on it alone allow, None where none is the
    largest."""
    alone = [c for c in conditions if c.names == {name}]
    held = [n for n in {*bounds(alone).get(name, ()), *_grid(alone)} if broken(alone, {name: n}) is None]
    return min(held, default=0), None if _FARTHEST in held or not held else max(held)


def _bounds_of(condition: Condition, name: str) -> set[int]:
    others = sorted(condition.names - {name})
    bounds_found: set[int] = set()
    for sizes in islice(product((1, 2, 4, 0), repeat=len(others)), 64):
        fixed = dict(zip(others, sizes, strict=True))
        grid = _grid([condition])
        at = [condition.holds({**fixed, name: size}) for size in grid]
        for a, b, before, after in zip(grid, grid[1:], at, at[1:], strict=False):
            if before != after:
                bounds_found.update(_between(condition, {**fixed}, name, a, b, before))
        if len(bounds_found) >= 16:  # a condition such as divisibility has a bound everywhere
            break
    return set(sorted(bounds_found)[:16])


def _between(condition: Condition, fixed: dict[str, int], name: str, low: int, high: int, at_low: bool) -> set[int]:
    """The two neighbours between `low` and `high` where the condition changes."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if condition.holds({**fixed, name: middle}) == at_low else (low, middle)
    return {low, high}


def _grid(conditions: Iterable[Condition]) -> list[int]:
    """Sizes to look at: small ones one by one, then ever farther apart, and around each number that stands in a
    condition."""
    around = {n for c in conditions for n in stated(c) if n <= _FARTHEST}
    far = {_FARTHEST, *(int(_DENSE * 1.25**k) for k in range(25))}
    return sorted({*range(_DENSE), *(n for n in far if n <= _FARTHEST), *around})


def stated(condition: Condition) -> set[int]:
    """The whole numbers that stand in a condition, each with its neighbours."""
    spaced = "".join(c if c.isalnum() or c in "._" else " " for c in condition.text)
    found = {int(float(word)) for word in spaced.split() if word.replace(".", "", 1).isdigit()}
    return {n + d for n in found for d in (-1, 0, 1) if n + d >= 0}


def nearest(conditions: Sequence[Condition], sizes: Mapping[str, int]) -> dict[str, int] | None:
    """The sizes closest to these that satisfy all conditions; None where a search finds none.

    Dimensions that no condition names stay as they are; few are changed rather than many.
    """
    wanted = {identifier(name): size for name, size in sizes.items()}
    if broken(conditions, wanted) is None:
        return dict(sizes)
    free = sorted({name for c in conditions for name in c.names} & set(wanted))
    grid = _grid(conditions)
    alone = ({**wanted, name: size} for name in free for size in _by_distance(grid, wanted[name]))
    width = max(2, int(_TRIED ** (1 / max(1, len(free)))))
    some = [*(2**k for k in range(0, 17, 2)), *_by_distance(grid, 12)[:24], *(n for c in conditions for n in stated(c))]
    near = [[*dict.fromkeys((*some[: width // 2], *_by_distance(grid, wanted[name])))][:width] for name in free]
    together = ({**wanted, **dict(zip(free, found, strict=True))} for found in product(*near))
    for candidates in (alone, islice(together, _TRIED)):
        holding = [c for c in candidates if all(size > 0 or wanted[n] == 0 for n, size in c.items())
                   and broken(conditions, c) is None]  # fmt: skip
        if holding:
            best = min(holding, key=lambda c: sum(abs(c[n] - wanted[n]) for n in free))
            return {name: best[identifier(name)] for name in sizes}
    return None


def _by_distance(grid: Sequence[int], size: int) -> list[int]:
    return sorted(grid, key=lambda n: abs(n - size))
