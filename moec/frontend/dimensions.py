"""Dynamic dimensions as torch.export takes them, with the bounds that it asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch._dynamo.exc import UserError
from torch.export import Dim

from moec.program.decoder_signature import PAST
from moec.program.signature import PLUS, identifier

# how torch.export words the bound that it found, and that two dimensions are one
_BOUND = re.compile(r"(?P<name>\w+) = Dim\('\w+'(?:, min=(?P<min>\d+))?(?:, max=(?P<max>\d+))?\)")

_SAME = re.compile(r"^ *(?P<name>[A-Za-z]\w*) = (?P<other>[A-Za-z]\w*)$", re.MULTILINE)

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
    least = 2 * (name.count(PLUS) + 1) if PLUS in name else 0 if name == PAST else 1
    bounds = found.groupdict() if found else {}
    most = int(bounds["max"]) if bounds.get("max") else None
    return Dim(identifier(name), min=max(least, int(bounds.get("min") or 0)), max=most)
