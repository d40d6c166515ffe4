"""What each parameter of a model is for, by the names that transformers gives modules, and its mixtures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from moec.errors import MoecError
from moec.huggingface.operators.experts import in_interface
from moec.huggingface.reading.text_part import text_part
from moec.planning.shape import Mixture, Part, Tensor
from moec.planning.written import TOP_K

_SEGMENTS: tuple[tuple[str, Part], ...] = (
    (r"shared_(expert|mlp|ffn)\w*|residual_mlp", "shared experts"),
    (r"norm\w*|\w*_?(layer)?norm|ln_?\w*|\w+_ln", "norm"),
    (r"\w*attn\w*|\w*attention\w*|mixer|mamba\w*|short_?conv|conv|temporal_block|linear_attn", "attention"),
    (r"mlp|ffn|\w*feed_forward|intermediate|output|fc\d?|\w+_mlp|dense\w*|lin\d", "dense FFN"),
)
_NO_ROUTER = r"shared_expert|(^|\.)(experts|self_attn|\w*norm)\."
_TABLES = r"embed\w*|\w+_embeddings?|wte|wpe|word_embeddings"


def tensors_of(model: Any, mixtures: tuple[Mixture, ...]) -> tuple[Tensor, ...]:
    """Every parameter of a `PreTrainedModel` with its part, tied ones once."""
    tables = {id(m.weight) for m in (model.get_input_embeddings(),) if m is not None and hasattr(m, "weight")}
    output = model.get_output_embeddings()
    heads = {id(p) for p in output.parameters()} if output is not None else set()
    text, composed = text_part(model), model.config.get_text_config() is not model.config
    inside = {id(p) for m in mixtures for p in routed(model.get_submodule(m.module))}
    around = {m.module.rpartition(".")[0]: m.experts for m in mixtures}

    def part(name: str, value: nn.Parameter) -> Part:
        if id(value) in heads:
            return "output head"
        if id(value) in tables:
            return "input embedding"
        if composed and text and not name.startswith(text):
            return "vision and audio"
        if id(value) in inside:
            return "routed experts"
        for module, experts in around.items():
            own = name.removeprefix(f"{module}.")
            if own != name and experts in value.shape[:1] and not re.search(_NO_ROUTER, own):
                return "router"
        return _by_name(name)

    return tuple(Tensor(name, tuple(p.shape), part(name, p)) for name, p in model.named_parameters())


def _by_name(name: str) -> Part:
    segments = name.split(".")[:-1]
    for pattern, part in _SEGMENTS[:2]:
        if any(re.fullmatch(pattern, s, re.IGNORECASE) for s in (segments if part != "norm" else segments[-1:])):
            return part
    for segment in reversed(segments):
        found = next((part for pattern, part in _SEGMENTS[2:] if re.fullmatch(pattern, segment)), None)
        if found:
            return found
        if re.fullmatch(_TABLES, segment):
            return "input embedding"
    return "other"


def mixtures_of(model: Any) -> tuple[Mixture, ...]:
    """Every module of the experts interface, and every list of alike experts, of a model on the meta device.

    Raises:
        MoecError: M204 where a token would use more experts than there are, M206 where nothing says how many it uses.
    """
    return tuple(_mixture(model, name, module) for name, module in _experts(model))


def _experts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        listed = isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "experts" and len(module) > 1
        if in_interface(module) or listed or _stacked(name, module) or _of_stacks(module) or _rows_of_all(name, module):
            yield name, module


def routed(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a mixture's experts; a router may lie in the same module."""
    found = list(module.parameters())
    return [p for p in found if p.dim() == 3] if _of_stacks(module) else found


def _rows_of_all(name: str, module: nn.Module) -> int:
    """How many experts a module holds whose matrices lie one below the other `[E*I, H]` (DBRX); 0 for any other."""
    counts = [vars(m)["moe_num_experts"] for m in module.modules() if "moe_num_experts" in vars(m)]
    return int(counts[0]) if name.rpartition(".")[2] == "experts" and counts else 0


def _of_stacks(module: nn.Module) -> bool:
    """Whether a module's linear layers are stacks of experts, beside its router (JetMoE)."""
    stacks = [m for m in module.children() if hasattr(m, "num_experts") and _matrix_of(m).dim() == 3]
    return bool(stacks) and not in_interface(module)


def _matrix_of(module: nn.Module) -> torch.Tensor:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.Tensor) else torch.empty(0)


def _stacked(name: str, module: nn.Module) -> bool:
    """Whether a module named after experts holds matrices that are stacked."""
    own = dict(module.named_parameters(recurse=False))
    return name.rpartition(".")[2] == "experts" and any(p.dim() == 3 for p in own.values())


def _mixture(model: Any, name: str, module: nn.Module) -> Mixture:
    parameters = sum(p.numel() for p in routed(module))
    hidden = int(model.config.get_text_config().hidden_size)
    if isinstance(module, nn.ModuleList):
        experts, widths = len(module), [p.shape for p in module[0].parameters() if p.dim() == 2]
    elif experts := _rows_of_all(name, module):
        widths = [torch.Size((p.shape[0] // experts, p.shape[1])) for p in module.parameters()]
    else:
        stacked = [p.shape for p in module.parameters() if p.dim() == 3]
        experts, widths = stacked[0][0], [shape[1:] for shape in stacked]
    intermediate = next((n for n in widths[-1] if n != hidden), hidden)  # of the matrix down
    top_k = _top_k(model, name)
    if not 0 < top_k <= experts:
        raise MoecError("M204", f"a token uses {top_k} of {experts} experts", name, "correct top_k in config.json")
    return Mixture(name, experts, top_k, parameters, hidden, intermediate)


def _top_k(model: Any, name: str) -> int:
    """What the router beside the experts says, else the module around both, else the config."""
    around = model.get_submodule(name.rpartition(".")[0])
    owners = [*around.children(), around, model.config.get_text_config()]
    for owner in owners:
        for attribute in TOP_K:
            value = getattr(owner, attribute, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            if isinstance(value, list | tuple) and value and len(set(value)) == 1:
                return int(value[0])
    what = "no entry says how many experts a token uses"
    raise MoecError("M206", what, name, "write it into config.json as num_experts_per_tok")
