"""Work on pieces of weights, several at a time: each in a thread of its own that computes alone.

PyTorch's own threads meet after every operation. A piece lies in a processor's cache and an operation on it takes 0.1
ms, so they would wait for each other most of the time, and nearly all of it where another process takes a core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock, Thread
from typing import TypeVar

import torch

Item = TypeVar("Item")
_END = object()


def in_threads(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Call `work` with each item, in as many threads as PyTorch has here; in their order where that is one.

    Items are asked for one at a time, when a thread is free. Raises what the first call raised that failed; those under
    way are waited for, and no more are begun.
    """
    many, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    waiting, turn, failed = iter(items), Lock(), list[BaseException]()

    def run() -> None:
        while not failed:
            with turn:
                item = next(waiting, _END)
            if item is _END:
                return
            work(item)  # type: ignore[arg-type]
            del item  # before the next one is read

    def run_alone() -> None:
        torch.set_num_threads(1)
        try:
            with torch.inference_mode(inference):
                run()
        except BaseException as error:
            failed.append(error)

    if many == 1:
        run()
        return
    threads = [Thread(target=run_alone) for _ in range(many)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as error:  # an interrupt
        failed.append(error)
        for thread in threads:
            if thread.ident is not None:  # it was begun
                thread.join()
    finally:
        torch.set_num_threads(many)
    if failed:
        raise failed[0]
