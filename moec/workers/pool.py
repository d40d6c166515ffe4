"""Pieces of a long computation, and who does them.

A piece is a function of plain data: of what all pieces share, and of its own item. It is computed with one thread of
PyTorch's, because the number of threads decides in which order a product's numbers are added. So its bytes are the same
in this process, in a thread beside others, and in a worker on another machine with such a processor. Results come in
the order of the items, whoever is done first: a sum over them is added up in one order, for any number of workers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from moec.execution.memory import available_bytes

Task = Callable[[Any, Any], Any]  # of what is shared, and of an item; a function that a module names
Begun = TypeVar("Begun")
_SPARE = 2  # of what is available, a part is left for everything else


class Pool(ABC):
    """Who does the pieces."""

    def share(self, value: Any) -> Any:
        """What several calls of `each` may get as `shared`: it goes to the workers once."""
        return value

    @abstractmethod
    def each(self, task: Task, shared: Any, items: Iterable[Any], held_bytes: int = 0) -> Iterator[Any]:
        """`task(shared, item)` of every item, in their order. Few are under way at a time, and items are asked for when
        their turn comes.

        Args:
            task: has no effects; it may be done twice, where a worker died. It changes nothing that it is given.
            shared: of `share`, or None.
            items: tensors, numbers, texts, data classes of them.
            held_bytes: what one piece holds while it is computed, about.
        """


class Here(Pool):
    """This process: as many pieces at a time as PyTorch has threads, and as there is memory for."""

    def each(self, task: Task, shared: Any, items: Iterable[Any], held_bytes: int = 0) -> Iterator[Any]:
        many = torch.get_num_threads()
        wide = min(many, most_at_once(held_bytes)) if held_bytes and many > 1 else many
        try:
            with ThreadPoolExecutor(wide) as threads:
                yield from in_order(lambda item: threads.submit(alone, task, shared, item), _result, items, wide + 1)
        finally:
            torch.set_num_threads(many)


def most_at_once(held_bytes: int) -> int:
    """Of pieces that hold so much: as many as this machine has memory for now, and one at least."""
    return max(1, available_bytes() // (_SPARE * held_bytes))


def alone(task: Task, shared: Any, item: Any) -> Any:
    """A piece, computed by one thread."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        return task(shared, item)


def in_order(
    begin: Callable[[Any], Begun], end: Callable[[Begun], Any], items: Iterable[Any], most: int
) -> Iterator[Any]:
    """Begin every item and give the results in the same order, `most` under way at a time."""
    under_way = deque[Begun]()
    for item in items:
        under_way.append(begin(item))
        if len(under_way) >= most:
            yield end(under_way.popleft())
    while under_way:
        yield end(under_way.popleft())


def _result(future: Any) -> Any:
    return future.result()
