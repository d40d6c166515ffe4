"""What a start and a compile need not wait for: packages that others import and hardly use, and the search for garbage
where none is made."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

# new objects between two searches for garbage. What is imported and captured stays, so that a search walks over all of
# it and finds little: Python's own 700 costs a fifth of a compile, 100,000 a twentieth, and this 13 MB
RARELY = 1_000_000


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Look for cyclic garbage rarely within, as Python did before afterwards.

    Graphs are many small objects that live long, and each search walks over them again. Tensors are freed by their
    reference count, at once as ever. Within another one it changes nothing: the command line begins one before
    anything is imported, `moec.inspect` and a compile each one for those who call them from Python.
    """
    before = gc.get_threshold()
    if before[0]:  # 0: someone switched it off
        gc.set_threshold(max(RARELY, before[0]), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def late(*names: str) -> Iterator[None]:
    """Within, a module that imports one of these packages gets a stand-in, which imports the package when it is first
    used.

    torch.export imports networkx for a partitioner, and transformers imports scipy.optimize for the losses of object
    detection and what saves a model in shards while it is trained; moec uses none of them. What a module takes from a
    stand-in at its import (`from scipy.optimize import linear_sum_assignment`) can be called later, and is called as
    ever. A package that is here already is left alone, and no stand-in stays in `sys.modules`.
    """
    stand_ins = {name: _StandIn(name) for name in names if name not in sys.modules}
    for name in [name for name in stand_ins if "." not in name]:  # of another's the parent would be imported
        stand_ins[name].__spec__ = importlib.util.find_spec(name)  # which torch._dynamo asks for
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            stand_in.__dict__["importing"] = False
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within, another value under a name that a module or class has. Raises AttributeError where it has none."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class _StandIn(ModuleType):
    """A package before it is imported."""

    importing = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks, of a package too
            raise AttributeError(name)
        return _Later(self.__name__, name) if self.importing else getattr(importlib.import_module(self.__name__), name)


class _Later:
    """A function of a package that is imported when it is called."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return getattr(importlib.import_module(self._module), self._name)(*args, **keywords)
