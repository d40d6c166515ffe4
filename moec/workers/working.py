"""Who does the pieces of long work now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moec.workers.place import Place
from moec.workers.pool import Here, Pool

_pools: list[Pool] = [Here()]  # the last one works


def pool() -> Pool:
    """The innermost of `working_on`, else this process."""
    return _pools[-1]


@contextmanager
def working_on(place: Place | None) -> Iterator[None]:
    """Within, these workers do the pieces, in all threads; None: whoever did them before. They are let go at the end.

    Raises:
        MoecError: M301 where Ray is not installed, M304 where the workers are not to be had.
    """
    if place is None:
        yield
        return
    from moec.workers.on_ray import ray_pool  # takes seconds to import

    with ray_pool(place) as found:
        _pools.append(found)
        try:
            yield
        finally:
            _pools.remove(found)
