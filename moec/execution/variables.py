"""Variables of the process's environment, for libraries that can be told things in no other way."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def with_variables(more: Mapping[str, str]) -> Iterator[None]:
    """Within, these are set; afterwards they are as before, also those that were not there."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
