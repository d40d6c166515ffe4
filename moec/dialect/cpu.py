"""`moec::experts_on_cpu`: `moec::experts` by the library of `moec.kernels.cpu`.

An operator of its own. `moec::experts` on the CPU is the reference against which everything is proven, and what it
gives must not hang on whether somebody has compiled a library. The kernels are built on the dialect, not the other way
round; here stands only the name under which they are found.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from moec.dialect.experts import fake_experts, pull_back, set_up

_NAME, _KERNELS = "moec::experts_on_cpu", "moec.kernels.cpu.pytorch"


def _found_late(*args: Any, **kwargs: Any) -> Tensor:
    """`moec::experts` by moec's compiled kernels for CPUs, as `moec.accelerate` calls it, with the same arguments and
    result, in float32 or bfloat16. A captured graph holds `moec::experts` instead.

    Raises:
        MoecError: M212 for shapes that do not fit together or an id that is no expert, M301 without the library.
    """
    result: Tensor = import_module(_KERNELS).experts(*args, **kwargs)
    return result


_schema = str(torch.ops.moec.experts.default._schema)
experts_on_cpu = torch.library.custom_op(
    _NAME, _found_late, mutates_args=(), device_types="cpu", schema=_schema[_schema.index("(") :]
)
experts_on_cpu.register_fake(fake_experts)
torch.library.register_autograd(_NAME, pull_back, setup_context=set_up)
