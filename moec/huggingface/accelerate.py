"""`moec.accelerate`: a transformers model's experts on moec's kernels for CUDA or for CPUs, in place."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.huggingface.accelerated_weights import (
    ELSE,
    IMPLEMENTATION,
    arrange,
    is_accelerated,
    lay_rows,
    own_order_only,
)
from moec.huggingface.operators.experts import in_interface, refuse
from moec.huggingface.operators.gate import Gate, identify
from moec.kernels.checks import DTYPES, check_ids
from moec.kernels.cpu.pytorch import DTYPES as DTYPES_ON_CPU
from moec.kernels.cpu.structures import require_that_opens
from moec.kernels.cpu.team import warn_where_alone
from moec.kernels.starting import interpreting

_Model = TypeVar("_Model", bound=nn.Module)


def accelerate(model: _Model, *, check: bool = False, tune: float = 0.0) -> _Model:
    """Switch every experts block of a transformers model to `moec::experts`, whose CUDA implementation are moec's
    kernels, or on a CPU to `moec::experts_on_cpu`, which is moec's library of kernels for CPUs.

    The model stays what it was: it can be called, compiled, exported, captured in a CUDA graph (after a first call, in
    which the kernels are compiled), trained (the backward is a plain one) and saved. Weights are not copied. Those of
    gpt-oss, whose rows are interleaved, are put in order, one block after the other: its `state_dict` still shows them
    as they were and `load_state_dict` takes them so, but it cannot go back to another experts implementation (M206). On
    a CPU matrices that lie transposed are turned in memory, too, and keep their shapes. Another model that shares the
    config object keeps the experts implementation that it had.

    On a CPU the model may change its dtype and be moved afterwards. What the kernels for CPUs do not take (float16,
    float64, rows that no longer lie in one piece, weights that came back from CUDA) is computed right, in plain PyTorch
    and slowly, and a RuntimeWarning says so; so does one where PyTorch's threads cannot be used (a build without
    OpenMP, a forked process). Tokens and matrices of different dtypes are refused (M212), as eager PyTorch does; a
    router's weights may be in another, and so may tokens under `torch.autocast`, which does not round the experts.

    Args:
        model: a `PreTrainedModel` on CUDA, in float16, bfloat16 or float32; or on the CPU, in bfloat16
            or float32.
        check: look at the ids of each call, which waits for the device, and raise M212 for one that is no expert.
            Without it, and in what is compiled, exported or captured in a CUDA graph, where nobody can look, such a
            choice adds nothing to its token. On a CPU every call looks.
        tune: seconds that may be spent on measuring, with this model's experts on this GPU, how the work is best cut;
            what is found is used in this process, and said on stderr. `benchmarks/moe_gpu.py --tune` measures for good.
            0: the committed table. On a CPU there is nothing to measure.

    Returns:
        The same model.

    Raises:
        MoecError: M302 on another device, M301 without Triton, or on a CPU without the library, M212 for another dtype,
            M206 for a block that moec doesn't know; then nothing has been changed.
    """
    if not hasattr(model, "set_experts_implementation"):
        raise MoecError(
            "M206",
            f"{type(model).__name__} is not a model of transformers",
            "moec.accelerate",
            "call torch.ops.moec.experts in its forward",
        )
    found = {path: module for path, module in model.named_modules() if in_interface(module)}
    if not found:
        fix = "accelerate a model whose experts use that interface, such as Mixtral, Qwen3-MoE, DeepSeek-V3 or gpt-oss"
        raise MoecError(
            "M206", f"no block of {type(model).__name__} is in transformers' experts interface", "moec.accelerate", fix
        )
    gates, on_cpu = _gates(found), _all_on_cpu(found)
    for path, module in found.items():
        _check(path, module, on_cpu)
    if on_cpu:
        require_that_opens("moec.accelerate")
        warn_where_alone()
    arranged: set[int] = set()  # blocks may share a parameter
    for path, module in found.items():
        arrange(module, gates[path], arranged)
        module._moec_check = check
        if on_cpu:
            lay_rows(module)
        module._moec_on_cpu = on_cpu
        if not hasattr(module, "_moec_before"):
            module._moec_before = module.register_forward_pre_hook(_before())
    interface: Any = model
    names = {key: _name(chosen) for key, chosen in interface.get_experts_implementation().items()}
    _register(names.values())
    interface.set_experts_implementation(names)
    if tune and not on_cpu:
        _tune(list(found.values()), tune)
    return model


def _tune(modules: list[Any], seconds: float) -> None:
    """Measure on one block of each shape, and let what is found come before the table."""
    from moec.kernels import tuning
    from moec.kernels.tiles import adopt

    blocks = {}
    for module in modules:
        w_in, w_out, b_in, b_out = _operands(module)
        top_k = getattr(module.config, "num_experts_per_tok", None) or 1  # only says how many tokens are tried
        blocks[w_in.shape, w_in.dtype] = tuning.BlockExperts(
            w_in, w_out, b_in, b_out, module._moec_gate.activation, top_k, w_in.dtype
        )
    with torch.no_grad():
        adopt(tuning.tune(list(blocks.values()), seconds=seconds, tell=lambda line: print(line, file=sys.stderr)))


def _register(names: Iterable[str] = ()) -> None:
    """Make the implementation known under its own name, and beside each one that a config may have had before."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    others = [name for name in ALL_EXPERTS_FUNCTIONS.valid_keys() if not is_accelerated(name)]
    for name in (IMPLEMENTATION, *map(_name, ("eager", *others)), *names):
        ALL_EXPERTS_FUNCTIONS.register(name, _forward)


def _name(chosen: str | None) -> str:
    """How a config says that its experts are accelerated, and what they were before: a plain word, so that it is
    copied and pickled with the config, and is written into no file."""
    return chosen if chosen and is_accelerated(chosen) else f"{IMPLEMENTATION}{ELSE}{chosen or 'eager'}"


class _Before:
    """What is asked before each call of a block. Read back from a pickle in another process, it makes transformers know
    the implementation there, too."""

    def __call__(self, module: Any, _arguments: Any) -> None:
        own_order_only(module)

    def __reduce__(self) -> Any:
        return _before, ()


def _before() -> _Before:
    _register()
    return _Before()


def _gates(found: dict[str, Any]) -> dict[str, Gate]:
    """Each block's gate; blocks of one class and one configuration share it. Raises M206."""
    known: dict[Any, Gate | None] = {}
    gates: dict[str, Gate] = {}
    for path, module in found.items():
        if module.has_post_expert_norm:
            raise refuse(path, module, "normalises the output of each expert, which the kernels do not")
        if module._is_expert_parallel:
            raise refuse(path, module, "is one rank of an expert-parallel model")
        if hasattr(module, "_moec_gate"):
            gates[path] = module._moec_gate
            continue
        key = type(module), id(module.config), repr(getattr(module, "act_fn", None))
        if key not in known:
            known[key] = identify(
                module._apply_gate if module.has_gate else module.act_fn, module.has_gate, (module, module.config)
            )
        gate = known[key]
        if gate is None:
            raise refuse(path, module, "has a gate that is none of those that moec knows")
        gates[path] = gate
    return gates


def _all_on_cpu(found: dict[str, Any]) -> bool:
    """Whether the kernels for CPUs are meant. Triton's interpreter runs those for CUDA on a CPU."""
    devices = {parameter.device.type for module in found.values() for parameter in module.parameters()}
    return devices == {"cpu"} and not interpreting()


def _check(path: str, module: nn.Module, on_cpu: bool) -> None:
    """Raise M302, M301 or M212 unless the kernels take this block's parameters."""
    dtypes = DTYPES_ON_CPU if on_cpu else DTYPES
    for name, parameter in module.named_parameters():
        if parameter.device.type != "cuda" and not interpreting() and not on_cpu:
            fix = (
                'move the model first: model.to("cuda")'
                if torch.cuda.is_available()
                else "run on a machine with an NVIDIA GPU, or compile with moec.compile"
            )
            raise MoecError(
                "M302", f"the experts are on {parameter.device}, and the kernels run on CUDA", f"{path}.{name}", fix
            )
        if parameter.dtype not in dtypes:
            fix = "load the model in " + " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise MoecError(
                "M212", f"the parameter is {parameter.dtype}, which the kernels don't take", f"{path}.{name}", fix
            )
    kinds = {str(p.dtype).removeprefix("torch.") for p in module.parameters()}
    if on_cpu and len(kinds) > 1:
        what = f"the parameters are {' and '.join(sorted(kinds))}, which eager PyTorch does not multiply either"
        raise MoecError("M212", what, path, "bring them to one dtype: model.to(torch.bfloat16)")
    if not on_cpu and find_spec("triton") is None:
        raise MoecError("M301", "Triton is not installed", "moec.accelerate", "pip install moec[triton]")


def _operands(self: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The matrices and biases of a block, as `moec::experts` takes them."""
    first = self._moec_first
    w_in, w_out = getattr(self, first), self.down_proj
    if self.is_transposed:
        w_in, w_out = w_in.mT, w_out.mT
    return (
        (w_in, w_out, getattr(self, f"{first}_bias"), self.down_proj_bias)
        if self.has_bias
        else (w_in, w_out, None, None)
    )


def _before_it(module: Any) -> Callable[..., Tensor]:
    """What transformers called for a module before a model with the same config was accelerated."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    chosen, own = module.config._experts_implementation.partition(ELSE)[2], type(module).forward.__wrapped__
    found: Callable[..., Tensor] = ALL_EXPERTS_FUNCTIONS.get_interface(chosen or "eager", own)
    return found


def _forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The experts implementation: what transformers calls in place of the module's own forward. Of a model that was not
    accelerated, but shares the config object with one that was, the implementation is called that it had before."""
    if not hasattr(self, "_moec_gate"):
        untouched: Tensor = _before_it(self)(self, hidden_states, top_k_index, top_k_weights)
        return untouched
    w_in, w_out, bias_in, bias_out = _operands(self)
    ids = top_k_index if top_k_index.dtype == torch.int64 else top_k_index.to(torch.int64)
    if (
        self._moec_check
        and not torch.compiler.is_compiling()
        and not (ids.is_cuda and torch.cuda.is_current_stream_capturing())
    ):
        check_ids(ids, w_in.shape[0])
    rule = self._moec_gate.activation.arguments()
    tokens, device = hidden_states, hidden_states.device.type
    if torch.is_autocast_enabled(device):  # what came before may have been rounded, weights were not
        tokens = tokens.to(w_in.dtype)
    # what is exported may run elsewhere
    here = self._moec_on_cpu and device == "cpu" and not torch.compiler.is_exporting()
    if device == "cpu" and not (here or interpreting() or torch.compiler.is_compiling()):
        why = "this model was accelerated on another device; call moec.accelerate(model) again"
        warnings.warn(f"experts run in plain PyTorch, slowly: {why}", RuntimeWarning, stacklevel=2)
    operator = torch.ops.moec.experts_on_cpu if here else torch.ops.moec.experts
    result: Tensor = operator(tokens, ids, top_k_weights, w_in, w_out, bias_in, bias_out, **rule)
    return result.to(hidden_states.dtype)
