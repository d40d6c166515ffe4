"""Layers of moec's own for transformers' cache, which transformers' own caches get to know nothing of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unregistered() -> Iterator[None]:
    """Within it, a class that is made of a cache's layer takes no layer's place.

    transformers keeps tables of the kinds of layers, and a subclass enters itself under the kind that it inherits.
    Every cache of the process would be made of it from then on, those of the untouched model too.
    """
    from transformers import cache_utils

    tables = [value for name, value in vars(cache_utils).items() if name.endswith("_MAPPING") and type(value) is dict]
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, known in zip(tables, before, strict=True):
            table.clear()
            table.update(known)
