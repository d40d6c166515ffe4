"""Instruments for the kernels: what waits for the device, what a CUDA graph would replay, and which addresses are
touched."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Waits(AssertionError):
    """An operator that has to wait for the device."""


def by_numbers(func: Any, args: Any) -> bool:
    """Indexing has the tag for the sake of masks; by numbers the result's shape is that of the numbers."""
    return func is torch.ops.aten.index.Tensor and all(i is None or i.dtype == torch.int64 for i in args[1])


class NeverWaiting(TorchDispatchMode):
    """Raises `Waits` for an operator whose result's value or shape the host must read from data, and for a copy from
    one device to another.

    PyTorch says of each of its operators whether it does: `item`, `nonzero`, `unique`, `bincount`, `masked_select`,
    `equal` …
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if WAITING_TAGS & set(func.tags) and not by_numbers(func, args):
            raise Waits(str(func))
        result = func(*args, **(kwargs or {}))
        given = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        if given and not {t.device.type for t in tree_leaves(result) if isinstance(t, Tensor)} <= given:
            raise Waits(f"{func} from {given} to another device")
        return result


@contextmanager
def captured() -> Iterator[list[Any]]:
    """Kernels run, and are written down as functions that run them again on the same memory, as a CUDA graph has
    them."""
    from moec.kernels import launch, routing

    found: list[Any] = []
    start = launch.start

    def keep(kernel: Any, grid: Any, *arguments: Any, **named: Any) -> None:
        found.append(lambda: start(kernel, grid, *arguments, **named))
        found[-1]()

    launch.start = routing.start = keep
    try:
        yield found
    finally:
        launch.start = routing.start = start


class Outside(AssertionError):
    """A load or a store outside of the tensors that a kernel was given."""


@contextmanager
def bounded() -> Iterator[list[int]]:
    """In Triton's interpreter: raises (through it) for an address outside of the launch's tensors; yields how many
    addresses it looked at.

    A tensor is what its shape and strides reach, not the storage that it is a view of. Masked lanes touch nothing and
    are not looked at.
    """
    import numpy
    from triton.runtime import interpreter

    builder, seen, ranges = type(interpreter.interpreter_builder), [0], []
    load, store, convert = builder.create_masked_load, builder.create_masked_store, interpreter._implicit_cvt

    def remember(argument: Any) -> Any:
        if isinstance(argument, Tensor) and argument.numel():
            last = sum((n - 1) * s for n, s in zip(argument.shape, argument.stride(), strict=True))
            ranges.append((argument.data_ptr(), argument.data_ptr() + (last + 1) * argument.element_size()))
        return convert(argument)

    def look(pointers: Any, mask: Any) -> None:
        used = pointers.data[numpy.broadcast_to(mask.data, pointers.data.shape).astype(bool)].astype(numpy.uint64)
        inside = numpy.zeros(used.shape, bool)
        for low, high in ranges:
            inside |= (used >= low) & (used < high)
        seen[0] += used.size
        if not inside.all():
            raise Outside(f"{int((~inside).sum())} of {used.size} addresses")

    def loads(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        look(pointers, mask)
        return load(self, pointers, mask, *rest)

    def stores(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        look(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store, interpreter._implicit_cvt = loads, stores, remember
    try:
        yield seen
    finally:
        builder.create_masked_load, builder.create_masked_store, interpreter._implicit_cvt = load, store, convert


@contextmanager
def in_random_order(seed: int) -> Iterator[None]:
    """In Triton's interpreter: the programs of a launch run in an order that no one may rely on, and memory that is
    allocated holds NaN, or the largest integer, until it is written."""
    from triton.runtime import interpreter

    generator = random.Random(seed)

    def shuffled(*bounds: int) -> Sequence[int]:
        found = list(range(*bounds))
        if sys._getframe(1).f_code.co_name == "__call__":  # the loops over the grid, and no others of that module
            generator.shuffle(found)
        return found

    module: Any = interpreter
    deterministic = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    module.range = shuffled
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del module.range
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
