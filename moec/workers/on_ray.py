"""Pieces on Ray Core (https://docs.ray.io): on processes of this machine, or on a cluster that runs already.

Ray is told to be silent and to send nothing home. On this machine it takes only what knows a token, which is drawn anew
for each process; a cluster's own token is the user's affair. A worker that is killed is
replaced, and its piece done again: pieces have no effects, so the bytes are the same.
"""

from __future__ import annotations

import logging
import platform
import secrets
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from moec.errors import MoecError, reason_of
from moec.execution.variables import with_variables
from moec.weights.remembered import code_key
from moec.workers.parcel import Parcel, unwrap, wrap
from moec.workers.place import Place
from moec.workers.pool import Pool, Task, alone, in_order, most_at_once

RETRIES = 3  # of a piece whose worker died
PATIENCE = 60  # seconds until a first piece is done, on a cluster that others use too
AHEAD = 2  # pieces for each worker that are under way: one that is computed, and one that waits
_SETTINGS = {  # read when Ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",  # and each message is one to skip: Ray would print on stdout that a worker died
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # it would make another environment for workers under `uv run`
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the way that is going to be the default, which Ray warns of
}


class OnRay(Pool):
    """A connection to Ray, see `ray_pool`."""

    def __init__(self, ray: Any, place: Place, retries: int = RETRIES) -> None:
        self._ray, self._place, self._retries = ray, place, retries
        self._work = ray.remote(num_cpus=1, max_retries=retries)(_work)
        self._nobody, self._kind = ray.put(wrap(None)), _kind()

    def share(self, value: Any) -> Any:
        return _Shared(self._ray.put(wrap(value)))

    def each(self, task: Task, shared: Any, items: Iterable[Any], held_bytes: int = 0) -> Iterator[Any]:
        given = self._nobody if shared is None else shared.reference
        most = AHEAD * int(self._ray.cluster_resources().get("CPU", 1))
        if held_bytes and not self._place.address:  # they share this machine's memory
            most = min(most, most_at_once(held_bytes))

        def begin(item: Any) -> Any:
            return self._work.remote(self._kind, given, wrap((task, item)))

        yield from in_order(begin, self._end, items, most)

    def _end(self, reference: Any) -> Any:
        try:
            return unwrap(self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:  # what the piece itself raised
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise _lost(self._place, f"{self._retries + 1} workers died of one piece: {reason_of(error)}") from error

    def require(self) -> None:
        """Raise M304 where a first piece cannot be done."""
        try:
            self._ray.get(self._work.remote(self._kind, self._nobody, wrap((_nothing, None))), timeout=PATIENCE)
        except self._ray.exceptions.GetTimeoutError:
            raise _lost(self._place, f"no worker became free within {PATIENCE} seconds") from None
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MoecError):
                raise error.cause from None
            raise _lost(self._place, f"its workers cannot work: {reason_of(error.cause or error)}") from error
        except Exception as error:  # of a worker without moec, say
            raise _lost(self._place, f"its workers cannot work: {reason_of(error)}") from error


@dataclass(frozen=True)
class _Shared:
    """What lies in Ray's object store; a reference that is an argument of its own is replaced by the value there."""

    reference: Any


def _work(kind: str, shared: Parcel, piece: Parcel) -> Parcel:
    """A piece, by a worker of the same kind: else its bytes would hang on who does it."""
    if kind != _kind():
        what = f"a worker on {platform.node()} has another moec, PyTorch or processor than this process"
        raise MoecError("M304", what, "--workers", "install the same versions on machines of one kind")
    task, item = unwrap(piece)
    return wrap(alone(task, unwrap(shared), item))


def _kind() -> str:
    return code_key("workers", platform.machine(), torch.backends.cpu.get_cpu_capability())


def _nothing(_shared: None, _item: None) -> None:
    """What a worker is tried with."""


@contextmanager
def ray_pool(place: Place) -> Iterator[Pool]:
    """Ray's workers, connected within.

    Raises:
        MoecError: M301 where Ray is not installed, M304 where the workers are not to be had, or are of another kind.
    """
    require_ray()
    token = {} if place.address else {"RAY_AUTH_TOKEN": secrets.token_hex(32)}  # else Ray writes one into the home
    with with_variables(_SETTINGS | token):  # a token of this machine's workers is no cluster's
        yield from _connected(place)


def _connected(place: Place) -> Iterator[Pool]:
    import ray

    settings: dict[str, Any] = {"configure_logging": False, "log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray").setLevel(logging.ERROR)
    if not place.address:
        settings |= {"num_cpus": place.count, "include_dashboard": False}
    with _signals_kept():
        try:
            ray.init(address=place.address or "local", **settings)
        except Exception as error:  # of many kinds, foreign ones too
            raise _lost(place, f"Ray cannot be reached: {reason_of(error)}") from error
    try:
        found = OnRay(ray, place)
        found.require()
        yield found
    finally:
        ray.shutdown()


def require_ray() -> None:
    """Raise M301 where Ray is not installed."""
    if find_spec("ray") is None:
        what = "workers need the package ray, which is not installed"
        raise MoecError("M301", what, "--workers", "pip install 'moec[ray]', or leave out --workers")


def _lost(place: Place, what: str) -> MoecError:
    fix = "see that it runs, has memory, and is told its token (RAY_AUTH_MODE=token), then the same command goes on"
    return MoecError("M304", what, str(place), fix)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own in SIGTERM's place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
