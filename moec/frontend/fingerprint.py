"""What a module in memory is beside the numbers of its parameters: its classes, its settings, the forms of its tensors,
and the code that all of them are from.

Two modules of equal code and equal fingerprints are captured as equal graphs. What no plain form has (an object, a
closure, a hook) makes a module that is captured anew each time.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, CodeType, EllipsisType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from moec.frontend.imported_code import code_of
from moec.frontend.plain_sizes import NotPlainError
from moec.weights.digest import add_tensor

_OF_MODULES = set(vars(nn.Module())) - {"training"}  # what every module has: tensors, hooks, other modules
_PLAIN = (type(None), bool, int, float, complex, str, bytes, EllipsisType, torch.dtype, torch.device, torch.layout,
          torch.memory_format, BuiltinFunctionType)  # fmt: skip
_MOST_BYTES = 2**20  # of a tensor that is a plain attribute


def fingerprint(module: nn.Module) -> str:
    """A text that says all of it. Raises NotPlainError for a module that holds something without a plain form."""
    return _Fingerprint().text(module)


def tensor_forms(module: nn.Module) -> Iterator[str]:
    """Each parameter and buffer: its name, shape, dtype and device, and under which name it came first."""
    first: dict[int, str] = {}
    for kind, tensors in (("parameter", module.named_parameters), ("buffer", module.named_buffers)):
        for name, value in tensors(remove_duplicate=False):
            found = first.setdefault(id(value), name)
            yield f"{kind} {name} {found} {tuple(value.shape)} {value.dtype} {value.device.type}"


class _Fingerprint:
    def __init__(self) -> None:
        self._code: set[str] = set()  # modules that classes and functions are from

    def text(self, module: nn.Module) -> str:
        named = module.named_modules(remove_duplicate=False)
        parts = [f"{name} {self._class(part)} {self._own(name, part)}" for name, part in named]
        return "\n".join([*parts, *tensor_forms(module), *code_of(self._code)])

    def _class(self, thing: Any) -> str:
        kind = thing if isinstance(thing, type) else type(thing)
        self._code.update(base.__module__ for base in kind.__mro__)
        return f"{kind.__module__}.{kind.__qualname__}"

    def _own(self, name: str, module: nn.Module) -> str:
        held = vars(module)
        hook = next((key for key in held if key.endswith("hooks") and held[key]), None)
        if hook is not None:
            raise NotPlainError(f"{name or 'the module'} has {hook.strip('_')}")
        return self._text({key: value for key, value in held.items() if key not in _OF_MODULES})

    def _text(self, value: Any) -> str:
        if isinstance(value, Enum):
            return f"{self._class(value)}.{value.name}"
        if type(value) in _PLAIN or isinstance(value, type):
            return self._class(value) if isinstance(value, type) else repr(value)
        if isinstance(value, tuple | list):
            return f"{type(value).__name__}({', '.join(map(self._text, value))})"
        if isinstance(value, set | frozenset):
            return f"set({', '.join(sorted(map(self._text, value)))})"
        if isinstance(value, dict):
            return f"dict({', '.join(f'{self._text(key)}: {self._text(part)}' for key, part in value.items())})"
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, partial):
            return f"partial({self._text(value.func)}, {self._text(value.args)}, {self._text(value.keywords)})"
        if isinstance(value, FunctionType) and value.__closure__ is None:
            return self._function(value)
        if isinstance(value, CodeType):
            return f"code({self._text((value.co_code, value.co_names, value.co_consts))})"
        if dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return f"{self._class(value)}({self._text(fields)})"
        raise NotPlainError(f"a {type(value).__name__}")

    def _function(self, value: FunctionType) -> str:
        """With its code: a file may give several functions one name, as it does to its lambdas."""
        self._code.add(value.__module__)
        own = (value.__defaults__, value.__kwdefaults__, value.__code__)
        return f"{value.__module__}.{value.__qualname__}{self._text(own)}"


def _tensor(value: Tensor) -> str:
    """A tensor that is no parameter and no buffer: a graph may hold its numbers."""
    if value.numel() * value.element_size() > _MOST_BYTES or value.device.type != "cpu":
        raise NotPlainError("a tensor that is no parameter and no buffer")
    found = hashlib.sha256()
    add_tensor(found, value)
    return found.hexdigest()
