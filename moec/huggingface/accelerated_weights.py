"""How the weights of an accelerated experts block lie in memory: as the kernels read them, while checkpoints that are
written or read stay what the architecture has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from moec.errors import MoecError
from moec.huggingface.operators.gate import Gate, Order, canonical, stored

IMPLEMENTATION = "moec-kernels"
ELSE = ", else "  # behind it stands what other models with the same config go on with


def arrange(module: Any, gate: Gate, arranged: set[int]) -> None:
    """Say the rule, and bring interleaved rows into order, once.

    Args:
        arranged: the `id` of each parameter that is in order, as another block's; is added to.
    """
    if hasattr(module, "_moec_gate"):
        return
    first = "gate_up_proj" if module.has_gate else "up_proj"
    if gate.order != "gate_up":
        for name in (first, f"{first}_bias") if module.has_bias else (first,):
            parameter = getattr(module, name)
            dim = 2 if parameter.dim() == 3 and module.is_transposed else 1
            if id(parameter) not in arranged:
                parameter.data = canonical(parameter.data, gate.order, dim)
                arranged.add(id(parameter))
        module.register_state_dict_post_hook(_as_stored)
        module.register_load_state_dict_pre_hook(_as_computed)
        module._moec_rearranged = True
        module._apply_gate = OtherOrder(type(module).__name__)
    module._moec_gate, module._moec_first = gate, first


def is_accelerated(chosen: str) -> bool:
    """Whether this name of an experts implementation is moec's."""
    return chosen.partition(ELSE)[0] == IMPLEMENTATION


def own_order_only(module: Any) -> None:
    """Raise M206 where another implementation would read rows that were put in order as if they lay interleaved."""
    chosen = module.config._experts_implementation
    if not is_accelerated(chosen) and hasattr(module, "_moec_rearranged"):
        raise _other_order(type(module).__name__, repr(chosen))


class OtherOrder:
    """The gate of a block whose rows were put in order: refuses. The kernels have a rule for it, so whoever calls it is
    another implementation, also one that was reached through `experts.forward`, past the hooks of a module."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, _both: Tensor) -> Tensor:
        """Raises M206."""
        raise _other_order(self.name, "another experts implementation")


def _other_order(name: str, reader: str) -> MoecError:
    what = f"moec.accelerate has put the rows of this block in order, and {reader} reads them as they were"
    return MoecError("M206", what, name, "load the model anew, or call moec.accelerate(model) again")


def lay_rows(module: Any) -> None:
    """Let each row of the matrices lie in one piece, as the kernels for CPUs read it; shapes stay what they are."""
    for name in (module._moec_first, "down_proj"):
        parameter = getattr(module, name)
        rows = parameter.data.mT if module.is_transposed else parameter.data
        if not rows.is_contiguous():
            rows = rows.contiguous()
            parameter.data = rows.mT if module.is_transposed else rows
    if not hasattr(module, "_moec_turned"):
        module.register_load_state_dict_post_hook(_lay_loaded)
        module._moec_turned = module.register_state_dict_post_hook(_as_dense)


def _lay_loaded(module: Any, _keys: Any) -> None:
    """After `load_state_dict(assign=True)` matrices lie as they were handed in."""
    if module._moec_on_cpu and all(p.device.type == "cpu" for p in module.parameters()):
        lay_rows(module)


def _as_dense(module: Any, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """What safetensors takes: elements in the order of their indices."""
    for name in (module._moec_first, "down_proj"):
        if (value := state.get(prefix + name)) is not None:
            state[prefix + name] = value.contiguous()


def _as_stored(module: Any, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """What a checkpoint must hold: rows in the order that the architecture has."""
    _reorder(module, state, prefix, stored)


def _as_computed(module: Any, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
    """What a checkpoint holds, with rows in the order that the kernels read."""
    _reorder(module, state, prefix, canonical)


def _reorder(module: Any, state: dict[str, Any], prefix: str, how: Callable[[Tensor, Order, int], Tensor]) -> None:
    first = module._moec_first
    for name in (first, f"{first}_bias"):
        if (value := state.get(prefix + name)) is not None:
            dim = 2 if value.dim() == 3 and module.is_transposed else 1
            state[prefix + name] = how(value, module._moec_gate.order, dim)
