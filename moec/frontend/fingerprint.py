"""What a module in memory is beside the numbers of its parameters: its classes, its settings, the forms of its tensors.

Two modules of equal code and equal fingerprints are captured as equal graphs. What no plain form has (an object, a
closure, a hook) makes a module that is captured anew each time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from enum import Enum
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from moec.frontend.plain_sizes import NotPlainError
from moec.weights.digest import add_tensor

_OF_MODULES = set(vars(nn.Module())) - {"training"}  # what every module has: tensors, hooks, other modules
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout,
          torch.memory_format, BuiltinFunctionType)  # fmt: skip
_MOST_BYTES = 2**20  # of a tensor that is a plain attribute


def fingerprint(module: nn.Module) -> str:
    """A text that says all of it. Raises NotPlainError for a module that holds something without a plain form."""
    parts = [f"{name} {_class(part)} {_own(name, part)}" for name, part in module.named_modules(remove_duplicate=False)]
    return "\n".join([*parts, *tensor_forms(module), *_versions(module)])


def tensor_forms(module: nn.Module) -> Iterator[str]:
    """Each parameter and buffer: its name, shape, dtype and device, and under which name it came first."""
    first: dict[int, str] = {}
    for kind, tensors in (("parameter", module.named_parameters), ("buffer", module.named_buffers)):
        for name, value in tensors(remove_duplicate=False):
            found = first.setdefault(id(value), name)
            yield f"{kind} {name} {found} {tuple(value.shape)} {value.dtype} {value.device.type}"


def _versions(module: nn.Module) -> Iterator[str]:
    """The packages that the module's classes are from, with their versions."""
    for name in sorted({type(part).__module__.partition(".")[0] for part in module.modules()}):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:  # a file, whose content is known
            yield f"{name} {getattr(sys.modules.get(name), '__version__', '')}"


def _class(thing: Any) -> str:
    kind = thing if isinstance(thing, type) else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"


def _own(name: str, module: nn.Module) -> str:
    held = vars(module)
    hook = next((key for key in held if key.endswith("hooks") and held[key]), None)
    if hook is not None:
        raise NotPlainError(f"{name or 'the module'} has {hook.strip('_')}")
    return _text({key: value for key, value in held.items() if key not in _OF_MODULES})


def _text(value: Any) -> str:
    if isinstance(value, Enum):
        return f"{_class(value)}.{value.name}"
    if type(value) in _PLAIN or isinstance(value, type):
        return _class(value) if isinstance(value, type) else repr(value)
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({', '.join(map(_text, value))})"
    if isinstance(value, set | frozenset):
        return f"set({', '.join(sorted(map(_text, value)))})"
    if isinstance(value, dict):
        return f"dict({', '.join(f'{_text(key)}: {_text(part)}' for key, part in value.items())})"
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, partial):
        return f"partial({_text(value.func)}, {_text(value.args)}, {_text(value.keywords)})"
    if isinstance(value, FunctionType) and value.__closure__ is None:
        return f"{value.__module__}.{value.__qualname__}{_text(value.__defaults__)}{_text(value.__kwdefaults__)}"
    if dataclasses.is_dataclass(value):
        return f"{_class(value)}({_text({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})})"
    raise NotPlainError(f"a {type(value).__name__}")


def _tensor(value: Tensor) -> str:
    """A tensor that is no parameter and no buffer: a graph may hold its numbers."""
    if value.numel() * value.element_size() > _MOST_BYTES or value.device.type != "cpu":
        raise NotPlainError("a tensor that is no parameter and no buffer")
    found = hashlib.sha256()
    add_tensor(found, value)
    return found.hexdigest()
