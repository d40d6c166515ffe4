"""A carved model for transformers: the dense model's class with other networks, whose code lies beside the weights.

No class of transformers has experts that count 1 beside a router with a bias (see `carved_stock` for the one case that
one has), so the folder holds `modeling_carved.py`, which a user has to trust before it runs.
"""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from moec.errors import MoecError
from moec.huggingface.reading import skeleton
from moec.huggingface.saving.same_architecture import plan_same
from moec.program.dialect_call import ROUTE
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import TRAINED, Program
from moec.program.provenance import module_path
from moec.weights import lazy
from moec.weights.lazy import Weight

aten = torch.ops.aten
CODE = "modeling_carved.py"
_SAYABLE = ("carve", "find-moe", "set-top-k", "fuse-moe", TRAINED)
# what moec calls them -> what transformers does
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "relu2": "relu2"}
_OWN = (aten.linear.default, ROUTE, operator.getitem, aten.add.Tensor, *MoeCall.operators)
_FINER = ".carve.router.weight"  # of a mixture whose experts were cut
_NOTHING = (  # in a model that runs
    aten.to.dtype,
    aten._to_copy.default,
    aten.view.default,
    aten.reshape.default,
    aten.dropout.default,
    aten.clone.default,
)


@dataclass(frozen=True)
class Form:
    """A carved network's sizes, as `modeling_carved.CarvedNetwork` takes them."""

    experts: int
    hidden: int
    width: int
    top_k: int
    activation: str
    gated: bool


def is_carved(program: Program) -> bool:
    """Whether dense networks of a program have become experts without training."""
    return any(step.name == "carve" and step.rewrites for step in program.history)


def read_carved(program: Program) -> dict[str, Form]:
    """The networks that were cut, by the module that they stand in. Raises M206 for what is no network of its own, and
    where other passes changed the model."""
    other = next((step.name for step in program.history if step.rewrites and step.name not in _SAYABLE), None)
    if other is not None:
        what = f"{other} changed it as well"
        raise refuse(program, what, f"save it without {other}, or compile it without saving")
    finer = next((name for name in program.weights if name.endswith(_FINER)), None)
    if finer is not None:
        raise refuse(program, f"experts of {finer.removesuffix(_FINER)} have parts, chosen by routers of their own")
    found = {}
    for node in moe_nodes(program):
        name = str(getattr(MoeCall(node).w_in, "target", ""))
        path = name.removesuffix(".experts.w_in")
        if path != name and f"{path}.experts.constant" in program.weights:
            _require_alone(program, path)
            found[path] = _form(program, MoeCall(node), path)
    return found


def refuse(program: Program, what: str, fix: str = "compile it without saving") -> MoecError:
    """M206 for a carved model that is not saved."""
    return MoecError("M206", f"the carved model has no place in transformers: {what}", program.source, fix)


def _form(program: Program, call: MoeCall, path: str) -> Form:
    activation, w_out = call.activation, program.weights[f"{path}.experts.w_out"]
    known = _ACTIVATIONS.get(activation.name)
    if known is None or activation != type(activation)(activation.name, activation.gated):
        raise refuse(program, f"the activation of {path} has no name there: {activation}")
    experts, hidden, width = w_out.shape
    return Form(experts, hidden, width, call.top_k, known, activation.gated)


def _require_alone(program: Program, path: str) -> None:
    """Raise M206 unless the module is the network and nothing else: it is replaced as a whole."""
    below = [n for n in program.weights if n.startswith(f"{path}.")]
    strange = [n for n in below if not n.startswith((f"{path}.router.", f"{path}.experts."))]
    nodes = [n for n in program.graph.nodes if f"{module_path(n)}.".startswith(f"{path}.") and n.op == "call_function"]
    sums = [n for n in nodes if n.target == aten.add.Tensor]
    odd = next((n.name for n in nodes if n.target not in (*_OWN, *_NOTHING)), sums[1].name if sums[1:] else None)
    found = strange[0] if strange else odd
    if found:
        raise refuse(program, f"{path} holds more than its feed-forward network: {found}")


# ---------------------------------------------------------------------- the checkpoint
def plan_carved(
    program: Program, forms: dict[str, Form], dense: Any, config: Any, dtype: torch.dtype | None
) -> tuple[Any, dict[str, Weight], str]:
    """The config, the weights by name in the files, and the text of the code beside them.

    Args:
        program: with plain weights, of which none is packed. forms: see `read_carved`.
        dense: the class of the dense model. config: its config.
        dtype: to store in; None means the program's.

    Raises:
        MoecError: M206 for a model that is no causal language model, and for weights that have no place.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    if dense.__name__ not in CAUSAL.values():
        raise refuse(program, f"{dense.__name__} is no causal language model")
    floats = next(program.weights[f"{path}.experts.w_in"].dtype for path in forms)
    target_class, config_class = carved_class(dense, type(config))
    given = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures", "auto_map")}
    target = config_class(**given, carved={path: asdict(form) for path, form in forms.items()})
    model = skeleton.build(target_class, target, dtype or floats)
    stored = plan_same(_renamed(program, forms), model, own_files=True)
    target = model.config
    target.dtype, target.architectures = dtype or floats, [target_class.__name__]
    module = CODE.removesuffix(".py")
    target.auto_map = {
        "AutoConfig": f"{module}.{config_class.__name__}",
        "AutoModelForCausalLM": f"{module}.{target_class.__name__}",
    }
    return target, stored, code(dense.__name__, type(config).__name__, target.model_type)


def carved_class(dense: Any, config: Any) -> tuple[Any, Any]:
    """What the code beside the weights defines, for this process."""
    from moec.huggingface.saving import modeling_carved as code_file

    where = {"__module__": code_file.__name__}  # where transformers looks for the decorator of experts
    config_class = type("CarvedConfig", (config,), {**where, "model_type": f"carved_{config.model_type}"})
    return type("CarvedForCausalLM", (code_file.Carved, dense), {**where, "config_class": config_class}), config_class


def code(dense: str, config: str, model_type: str) -> str:
    """The text of the file beside the weights: `modeling_carved` as it stands, and the classes of this model."""
    body = (Path(__file__).parent / CODE).read_text("utf-8")
    imported = f"from transformers import {', '.join(sorted((dense, config)))}\n"
    body = body.replace("from transformers.activations", f"{imported}from transformers.activations", 1)
    return f'''{body}

class CarvedConfig({config}):
    """The dense model's config, with `carved`: the networks that were cut, by module."""

    model_type = "{model_type}"


class CarvedForCausalLM(Carved, {dense}):
    """The dense model with these networks."""

    config_class = CarvedConfig
'''


def _renamed(program: Program, forms: dict[str, Form]) -> Program:
    """A copy whose weights have the names of `modeling_carved`, biases that are not there as zeros."""
    copy = program.clone()
    for path, form in forms.items():
        first = "gate_up_proj" if form.gated else "up_proj"
        rows = copy.weights[f"{path}.experts.w_in"].shape[1]
        names = {
            "experts.w_in": f"experts.{first}",
            "experts.b_in": f"experts.{first}_bias",
            "experts.w_out": "experts.down_proj",
            "experts.b_out": "experts.down_proj_bias",
            "experts.constant": "constant",
        }
        for now, wanted in names.items():
            weight = copy.weights.pop(f"{path}.{now}", None)
            if weight is None:
                dtype = copy.weights[f"{path}.experts.{first}"].dtype
                weight = lazy.zeros((form.experts, rows), dtype)
            copy.add_weight(f"{path}.{wanted}", weight)
            for node in copy.graph.nodes:
                if node.op == "get_attr" and node.target == f"{path}.{now}":
                    node.target = f"{path}.{wanted}"
    return copy
