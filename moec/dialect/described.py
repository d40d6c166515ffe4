"""What an operator takes and gives, for those who look it up: its schema and the text that stands with its code."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from moec import dialect
from moec.dialect.activation import Activation
from moec.dialect.capacity import Capacity
from moec.dialect.routing import Routing

_RULES = {"route": (Routing, Capacity), "experts": (Activation,), "moe": (Routing, Activation)}


def describe(name: str) -> dict[str, Any]:
    """An operator's schema and its text, with the texts of the rules that it refers to.

    Args:
        name: without `moec::`.
    """
    operator: Any = getattr(dialect, name)
    texts = [inspect.getdoc(operator._init_fn) or ""]
    texts += [f"{rule.__name__}: {inspect.getdoc(rule)}" for rule in _RULES.get(name, ())]
    schema = str(getattr(torch.ops.moec, name).default._schema)
    return {"operator": f"moec::{name}", "schema": schema, "doc": "\n\n".join(texts)}
