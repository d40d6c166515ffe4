"""The config of a model that kept its architecture and has another number of experts, and what no checkpoint can
say."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from moec.errors import MoecError
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import TRAINED, Program
from moec.weights.difference import first_difference
from moec.weights.weight import Weight

_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
# architectures whose files hold an expert's matrices as `moec::experts` reads them, and whose code takes any number of
# experts
_KNOWN = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "glm4_moe")
_SAYABLE = ("find-moe", "fuse-moe", "prune-experts", "add-expert", "quantize", "calibrate-router", "set-top-k", TRAINED)
_FIX = "compile it without saving, or leave that out"


def is_pruned(program: Program) -> bool:
    """Whether the program has the architecture of its source, with some experts fewer or more."""
    names = {step.name for step in program.history if step.rewrites}
    return bool(names & {"prune-experts", "add-expert"}) and "upcycle" not in names


def refuse_unsayable(program: Program) -> None:
    """Raise M206 where a pass made results depend on the call, changed operators in a way that only it knows, or
    numbers that the model's code makes anew, such as rotary tables: no checkpoint holds what it does."""
    found = next((step.name for step in program.history if (step.by_call and step.rewrites) or step.rewires), None)
    if found is not None:
        raise MoecError(
            "M206", f"what {found} does is no weight, and a checkpoint holds only those", program.source, _FIX
        )
    outside = program.original.outside.items()
    other = next((name for name, weight in outside if not _is_same(weight, program.weights.get(name, weight))), None)
    if other is not None:
        what = f"the numbers of {other} were changed, and a model makes them anew: no checkpoint holds them"
        raise MoecError("M206", what, program.source, _FIX)


def _is_same(captured: Weight, now: Weight) -> bool:
    if captured is now:
        return True
    alike = (captured.shape, captured.dtype) == (now.shape, now.dtype)
    return alike and first_difference(captured, now) is None


def pruned_config(program: Program, config: Any) -> Any:
    """The source's config with the program's number of experts.

    Raises:
        MoecError: M206 when transformers has no place for such a model, with the reason.
    """
    key = next((k for k in _COUNTS if k in config.to_dict()), None)
    if config.model_type not in _KNOWN or key is None:
        raise _refuse(
            program,
            f"a {config.model_type} with other numbers of experts has not been tried; known are {', '.join(_KNOWN)}",
        )
    other = next((step.name for step in program.history if step.rewrites and step.name not in _SAYABLE), None)
    if other is not None:
        raise _refuse(program, f"{other} changed the architecture of a {config.model_type}")
    counts = sorted({MoeCall(node).experts for node in moe_nodes(program)})
    if len(counts) != 1:
        raise _refuse(
            program,
            f"its layers have {' and '.join(map(str, counts))} experts, and {config.model_type} has one number "
            "for all of them",
        )
    changed = deepcopy(config)
    setattr(changed, key, counts[0])
    return changed


def _refuse(program: Program, what: str) -> MoecError:
    return MoecError("M206", f"the model has no place in transformers: {what}", program.source, _FIX)
