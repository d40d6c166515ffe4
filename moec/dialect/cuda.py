"""Where CUDA tensors go: to the kernels of `moec.kernels`, found by name when the first one comes.

The kernels are built on the dialect, not the other way round; here stands only the name under which they are found, so
that whoever uses `torch.ops.moec` on CUDA has them, and nobody else loads Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from moec.dialect.experts import experts
from moec.dialect.moe import moe
from moec.dialect.routing import route

_KERNELS = "moec.kernels.dispatch"


def _found_late(name: str) -> Callable[..., Any]:
    def implementation(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(_KERNELS), name)(*args, **kwargs)

    return implementation


for _name, _operator in {"route": route, "experts": experts, "moe": moe}.items():
    _operator.register_kernel("cuda", _found_late(_name))
