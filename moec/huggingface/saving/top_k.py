"""A mixture whose tokens go to fewer experts than its config said: a config that says so, and weights that hold what
its outputs are scaled by."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

from torch import fx

from moec.dialect import Routing
from moec.errors import MoecError
from moec.program.dialect_call import RouteCall
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import Program
from moec.recognition.router_region import route_behind
from moec.weights import lazy
from moec.weights.lazy import Weight, decoded
from moec.weights.weight import FloatCodes

_COUNT, _SCALE, _NORMED = "num_experts_per_tok", "routed_scaling_factor", "norm_topk_prob"
# architectures whose files hold an expert's matrices as `moec::experts` reads them, and that were tried
_KNOWN = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "glm4_moe")


def has_fewer(program: Program) -> bool:
    """Whether tokens go to fewer experts than they did."""
    return any(step.name == "set-top-k" and step.rewrites for step in program.history)


def top_k_config(program: Program, config: Any) -> Any:
    """The config with the program's number of experts a token, and with what becomes of their scores. Raises M206 where
    it has no entry for that, or one for layers that differ. Carved networks are none of the architecture's mixtures."""
    rules = {rule for n in moe_nodes(program) if (rule := _rule(n)[0]) is not None and _is_own(rule)}
    counts = sorted({rule.top_k for rule in rules})
    if not counts:
        return config
    if config.model_type not in _KNOWN:
        what = f"a {config.model_type} with other numbers of experts a token has not been tried; known are "
        fix = f"with rescale=False it is the model with another {_COUNT} in its config.json: write that there"
        raise _refuse(program, what + ", ".join(_KNOWN), fix)
    if len(counts) != 1:
        said = " and ".join(map(str, counts))
        what = f"its layers send a token to {said} experts, and {config.model_type} has one number for all of them"
        raise _refuse(program, what, f"write set-top-k({counts[0]}), or compile it without saving")
    changed = deepcopy(config)
    setattr(changed, _COUNT, counts[0])
    renormalised = {rule.combine != "scores" for rule in rules}
    if len(renormalised) > 1 or (False in renormalised and not hasattr(config, _NORMED)):
        what = f"{config.model_type} does not say which layers renormalise their scores"
        raise _refuse(program, what, "use rescale=False, or compile it without saving")
    if hasattr(config, _NORMED):
        setattr(changed, _NORMED, renormalised.pop())
    return changed


def _refuse(program: Program, what: str, fix: str) -> MoecError:
    what = f"the model with fewer experts a token has no place in transformers: {what}"
    return MoecError("M206", what, program.source, fix)


def with_scales_in_weights(program: Program, config: Any) -> Program:
    """A copy whose experts give what the routing rule's scale made of them; the rule's own is what the config says.

    Args:
        program: with plain weights, see `with_plain_weights`: of those that are packed the scales are multiplied.
    """
    copy = program.clone()
    for node in moe_nodes(copy):
        call, (rule, holder) = MoeCall(node), _rule(node)
        own = float(getattr(config, _SCALE, None) or 1.0) if rule is not None and _is_own(rule) else 1.0
        if rule is None or rule.scale == own:
            continue
        last = {str(a.target): w for a in (call.w_out, call.b_out) if (w := copy.weight_of(a)) is not None}
        if any(copy.weights[name] is not program.weights[name] for name in last):
            fix = "compile it without saving, or use rescale=False"
            raise _refuse(program, "several of its layers read the same experts", fix)
        copy.weights |= {name: _scaled(weight, rule.scale / own) for name, weight in last.items()}
        holder.kwargs = {**holder.kwargs, "scale": own}
    return copy


def _rule(node: fx.Node) -> tuple[Routing | None, fx.Node]:
    call = MoeCall(node)
    if call.routing is not None:
        return call.routing, node
    route = route_behind(call.ids, call.weights)
    return (None, node) if route is None else (RouteCall(route).routing, route)


def _is_own(rule: Routing) -> bool:
    """Whether a rule is one of the architecture's, not of a network that was carved."""
    return rule.combine != "ones"


def _scaled(weight: Weight, factor: float) -> Weight:
    coded = weight.coded
    if coded is None:
        return lazy.scale(weight, factor)
    if isinstance(coded, FloatCodes) and coded.overall is not None:  # its scales are codes themselves
        return decoded(replace(coded, overall=lazy.scale(coded.overall, factor)))
    return decoded(replace(coded, scale=lazy.scale(coded.scale, factor)))
