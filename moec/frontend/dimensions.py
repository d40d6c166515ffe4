"""Dynamic dimensions as torch.export takes them: the bounds that it asks for, and samples that are large enough."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch._dynamo.exc import UserError  # here: dynamo asks for the module that `import_export` leaves out
from torch.export import Dim

from moec.program.conditions import Condition
from moec.program.decoder_signature import HELD
from moec.program.signature import PER, PLUS, identifier

# how torch.export words the bound that it found, and that two dimensions are one
_BOUND = re.compile(r"(?P<name>\w+) = Dim\('\w+'(?:, min=(?P<min>\d+))?(?:, max=(?P<max>\d+))?\)")

_SAME = re.compile(r"^ *(?P<name>[A-Za-z]\w*) = (?P<other>[A-Za-z]\w*)$", re.MULTILINE)

GROWTH, LARGEST = (8, 64), 2**24  # times that too small samples are repeated, and elements that they then may have

Found = Mapping[str, re.Match[str]]
Shapes = Mapping[str, Sequence[str | int | None]]


def dynamic_shapes(inputs: Iterable[str], dynamic: Shapes, found: Found) -> dict[str, dict[int, Any]]:
    """For each input a `Dim` for each of its dynamic dimensions, as `torch.export.export` takes them.

    Args:
        inputs: their names.
        dynamic: the name of each dimension, None where it is fixed.
        found: what torch has asked for, by the dimension's identifier: bounds, or another dimension of its size.
    """
    names = {identifier(d): d for shape in dynamic.values() for d in shape if isinstance(d, str)}
    dims = {}
    for name, dim in names.items():
        same = found[name].groupdict().get("other") if name in found else None
        chosen = names.get(same or name, dim)
        dims[dim] = _bounded(chosen, found.get(identifier(chosen)))
    return {name: {i: dims[d] for i, d in enumerate(dynamic.get(name, ())) if isinstance(d, str)} for name in inputs}


def suggested_bounds(error: Exception) -> dict[str, re.Match[str]]:
    """The bounds of dimensions that torch.export asks for, by name; none for any other error.

    Read from torch's message, the one place where they stand: a `UserError` has a type for violated constraints, but no
    attribute for what it suggests.
    """
    if not isinstance(error, UserError) or "Suggested fixes" not in str(error):
        return {}
    return {m["name"]: m for form in (_SAME, _BOUND) for m in form.finditer(str(error))}


def _bounded(name: str, found: re.Match[str] | None) -> Dim:
    """A dynamic dimension. torch.export assumes 2 or more of every part of a sum, and insists on hearing it: said at
    once, it saves the export that fails."""
    least = 2 * (name.count(PLUS) + 1) if PLUS in name else 0 if name in HELD or PER in name else 1
    bounds = found.groupdict() if found else {}
    most = int(bounds["max"]) if bounds.get("max") else None
    return Dim(identifier(name), min=max(least, int(bounds.get("min") or 0)), max=most)


def are_least_sizes(conditions: Iterable[Condition], sizes: Mapping[str, int]) -> bool:
    """Whether sizes break conditions by being too small and in no other way: a larger sample must not have taken
    another branch than the user's own, as where a length is padded to a multiple."""
    larger = [
        {n: times * size + more for n, size in sizes.items()} for times, more in ((64, 0), (64, 1), (72, 3), (640, 5))
    ]
    return all(condition.holds(s) for condition in conditions if not condition.holds(sizes) for s in larger)


def enlarged(samples: Mapping[str, Tensor], dynamic: Shapes) -> Iterator[dict[str, Tensor]]:
    """The samples repeated along their dynamic dimensions, more and more, for a model that needs more than they have.

    Every dimension grows as much, so that sums stay sums. Nothing comes where none is dynamic.
    """
    named = {name: [isinstance(d, str) for d in dynamic.get(name, ())] for name in samples}
    named = {n: [*dims, *[False] * (samples[n].dim() - len(dims))] for n, dims in named.items()}
    for times in GROWTH if any(map(any, named.values())) else ():
        if all(t.numel() * times ** sum(named[n]) < LARGEST for n, t in samples.items()):
            yield {n: t.repeat([times if d else 1 for d in named[n]]) if t.dim() else t for n, t in samples.items()}
