"""The account of a Hugging Face model: its class, each tensor of its files, each input of its forward, foreign files.

What cannot be explained is refused before anything is compiled: the reference is opened by the same reading of the
folder, so that a comparison would never find it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.frontend.account import FLAG, Account, LeaveOut, LeftOut, cut
from moec.huggingface.inputs.arguments import left_out_inputs, tensor_arguments
from moec.huggingface.inputs.heads import pools_at_end, takes_one_text
from moec.huggingface.operators.dropping import reads_two_experts_only
from moec.huggingface.operators.product_keys import product_keys_of
from moec.huggingface.reading.conversion import place
from moec.huggingface.reading.folder import ModelFolder, lacks
from moec.huggingface.reading.model_class import declared
from moec.huggingface.reading.peft_adapter import ADAPTER
from moec.huggingface.stated import stated_of
from moec.program.program import Program
from moec.weights.lazy import Weight

_COMPUTED = r"(^|\.)(inv_freq|original_inv_freq|position_ids|masked_bias|attn\.bias)$"  # once saved, now made
_RUN_TIME_SCALE = r"\.(input|output|k|v|q|kv_cache)_(scale|zero_point)$|\.input_global_scale$"
_POOLING = "modules.json"  # of sentence-transformers
_ACROSS_TOKENS = (
    "experts: transformers' code mixes the scores of all tokens of a call, later ones, other texts and padding among "
    "them; the engine does the same, so that a text's answer hangs on what comes with it"
)


def account_of(
    origin: Any,
    inputs: Iterable[str],
    leave_out: LeaveOut,
    otherwise: Callable[[str], str] = lambda _: "",
    fixed: Mapping[str, Tensor] | None = None,
) -> Account:
    """What a model is, and what the engine is without.

    Args:
        origin: see `moec.huggingface.source.Origin`.
        inputs: names of the engine's inputs.
        leave_out: what the user asked to do without. otherwise: why an input is left out, by its name, where nothing
            else says it.
        fixed: inputs that have one value for good.

    Raises:
        MoecError: M216 for an input, M215 for a tensor that nothing explains, M205 for one that is missing, M201 when
            there is nothing to leave out under a name that the user gave.
    """
    model, kept, constant = origin.template, tuple(inputs), fixed or {}
    left_out = list(left_out_inputs(model, (*kept, *constant), leave_out, otherwise))
    left_out += [LeftOut("input", n, f"it is always {value.tolist()}", True) for n, value in constant.items()]
    folder = origin if isinstance(origin, ModelFolder) else None
    files = folder.checkpoint.weights if folder else {}
    if folder:
        unused = unused_tensors(model, files, leave_out)
        left_out += [*unused, *_files(folder, leave_out)]
        if folder.missing:
            raise lacks(folder.missing, folder.path)
    leave_out.check({*tensor_arguments(model), *(x.name for x in left_out)} - {model.main_input_name})
    return Account(
        model=type(model).__name__,
        declared=_declared(folder),
        inputs=kept,
        tensors=len(files),
        used=len(files) - sum(x.thing == "tensor" for x in left_out),
        stated=stated_of(type(model).__name__, folder.path if folder else None),
        left_out=tuple(left_out),
        notes=tuple(_notes(model, folder)),
        hub=folder.hub if folder else "",
    )


def _declared(folder: ModelFolder | None) -> str:
    """What config.json says, and whose code was run."""
    if folder is None:
        return ""
    names = declared(folder.raw)
    said = f"as config.json says ({names[0]})" if names else "the bare model, since config.json names no class"
    own = folder.model_class.__module__.startswith("transformers.")
    if not own:
        return f"{said}, by the folder's own code"
    return f"{said}, by transformers' code; the folder's own was not run" if folder.raw.get("auto_map") else said


def _notes(model: Any, folder: ModelFolder | None) -> list[str]:
    notes = [folder.adapter.note()] if folder and folder.adapter else []
    if any(reads_two_experts_only(module) for module in model.modules()):
        notes.append("experts: transformers' code sends every token to experts 0 and 1; the engine does the same")
    if product_keys_of(model):
        notes.append(_ACROSS_TOKENS)
    if takes_one_text(model):
        notes.append("batch: always 1, since the config has no pad_token_id; set it there for more")
    if pools_at_end(model):
        notes.append("texts: each must end with the end token, as the tokenizer makes them; the last one is classified")
    return notes


def _files(folder: ModelFolder, leave_out: LeaveOut) -> list[LeftOut]:
    """Files of other libraries that change what a user of the folder gets."""
    found = []
    if folder.adapter is None and (folder.path / ADAPTER).is_file() and ADAPTER in leave_out:
        found.append(LeftOut("file", ADAPTER, "you asked for it: the base model alone is compiled", True))
    if (folder.path / _POOLING).is_file():
        why = "pooling and what follows it are sentence-transformers' own; the engine gives the model's outputs"
        found.append(LeftOut("file", _POOLING, why))
    return found


def unused_tensors(model: Any, stored: Mapping[str, Weight], leave_out: LeaveOut) -> list[LeftOut]:
    """The tensors of the files that the model has no place for, each with the reason.

    Raises M215 for those without one.
    """
    state: dict[str, Tensor] = model.state_dict()
    unused = [name for name, key, *_ in place(model, stored, state) if key not in state]
    why = {name: _why_unused(name, stored[name], model) for name in unused}
    asked = [name for name in unused if not why[name] and name in leave_out]
    left = [name for name in unused if not why[name] and name not in asked]
    if left:
        raise _unexplained(left, type(model).__name__, stored)
    return [LeftOut("tensor", n, why[n] or "you asked for it", n in asked) for n in unused]


def read_by(program: Program) -> set[int]:
    """Which weights a captured program reads, and what they are made of; by their ids."""
    return {id(part) for weight in program.weights.values() for part in weight.expression()}


def unread_tensors(stored: Mapping[str, Weight], read: Container[int]) -> list[LeftOut]:
    """The tensors of the files of which nothing is read (see `read_by`): a part of the model that its inputs do not
    reach, or a copy of a tensor that it is tied to."""
    why = "the model has a place for it, and no output of the engine reads it"
    return [LeftOut("tensor", name, why) for name, weight in stored.items() if id(weight) not in read]


def _unexplained(names: list[str], kind: str, stored: Mapping[str, Weight]) -> MoecError:
    what = f"{kind} has no place for {cut(names)}, which the files hold"
    fix = (
        f"correct `architectures` in config.json if the model is another one; else {FLAG} '{','.join(covering(names))}'"
    )
    return MoecError("M215", what, stored[names[0]].origin, fix)


def _why_unused(name: str, weight: Weight, model: Any) -> str:
    """Why a model rightly has no place for a tensor; empty where nothing says so."""
    known = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    if any(re.search(pattern, name) for pattern in known):
        return "transformers' class declares that it does not need it"
    if re.search(_COMPUTED, name):
        return "the model computes it, with the same values" if _computes(name, weight, model) else ""
    if re.search(_RUN_TIME_SCALE, name):
        return "it scales activations for integer kernels; activations are not quantized"
    return "it predicts further tokens, for speculation only" if _predicts_ahead(name, model) else ""


def _computes(name: str, weight: Weight, model: Any) -> bool:
    """Whether the model makes a buffer of this name and these values; an attention's triangle it makes anew."""
    if name.endswith("bias"):
        return not weight.shape or (len(weight.shape) == 4 and _is_triangle(weight.load()))
    ending = "." + name.rpartition(".")[2]
    made = [b for n, b in model.named_buffers() if f".{n}".endswith(ending) and b.shape == weight.shape]
    value = weight.load().double()
    return any(torch.allclose(b.double(), value, rtol=1e-2, atol=1e-6) for b in made)


def _is_triangle(mask: Tensor) -> bool:
    """Whether this is a causal mask of ones and zeros, `[1, 1, length, length]`."""
    return torch.equal(mask.double(), torch.ones_like(mask, dtype=torch.float64).tril())


def _predicts_ahead(name: str, model: Any) -> bool:
    """Whether a tensor belongs to the layers of multi-token prediction that follow a model's own."""
    config = model.config.get_text_config()
    ahead = getattr(config, "num_nextn_predict_layers", 0) or getattr(config, "mtp_num_hidden_layers", 0) or 0
    layer = re.search(r"(^|\.)layers\.(\d+)\.", name)
    first = int(getattr(config, "num_hidden_layers", 0) or 0)
    return bool(ahead) and (bool(re.match(r"(model\.)?mtp\.", name)) or bool(layer and int(layer[2]) >= first))


def covering(names: Iterable[str]) -> list[str]:
    """Patterns that cover these names, one for each first part that they have in common."""
    groups: dict[str, list[list[str]]] = {}
    for name in names:
        groups.setdefault(name.split(".")[0], []).append(name.split("."))
    patterns = []
    for parts in groups.values():
        common = [place[0] for place in takewhile(lambda place: len(set(place)) == 1, zip(*parts, strict=False))]
        patterns.append(".".join(parts[0]) if len(parts) == 1 else ".".join([*common, "*"]))
    return patterns
