"""Functions of a model's own file that a module's forward calls, and others in their place while it runs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import Any

from torch import nn

from moec.startup import swapped

Function = Callable[..., Any]


def functions_read(module: nn.Module, is_wanted: Callable[[Sequence[str]], bool]) -> dict[str, Function]:
    """The functions among the globals that the forward of a module's class reads, by name; those whose parameters, in
    their order, are wanted."""
    forward = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    named = {name: forward.__globals__.get(name) for name in code.co_names} if code else {}
    return {
        name: function
        for name, function in named.items()
        if inspect.isfunction(function) and is_wanted(list(inspect.signature(function).parameters))
    }


def let_call(module: nn.Module, names: Iterable[str], other: Callable[[Function, dict[str, Any]], Function]) -> None:
    """Let a module find other functions under these names of its class's file while its forward runs, in place: each is
    `other` of the file's own function and of the keyword arguments of that call of forward."""
    forward, names = module.forward, tuple(names)
    file = sys.modules[inspect.unwrap(type(module).forward).__module__]

    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(swapped(file, name, other(getattr(file, name), kwargs)))
            return forward(*args, **kwargs)

    module.forward = call
