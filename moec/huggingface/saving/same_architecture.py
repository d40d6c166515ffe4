"""A program that still has the architecture of its source, weight by weight under the names of its files.

The architecture's own names are used, its experts one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.huggingface.reading.conversion import collect
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import META, Program
from moec.recognition.weight_roles import weight_uses
from moec.weights import lazy
from moec.weights.lazy import Weight, from_tensor

_FIX = "quantize everything in a layer alike, or compile without saving"


def plan_same(program: Program, model: Any, own_files: bool = False) -> dict[str, Weight]:
    """Name in the files -> lazy weight, for a program that still has the architecture it was captured from.

    Args:
        program: with plain weights.
        model: the architecture on the meta device; its output is untied here where head and embedding have become
            different tensors.
        own_files: whether moec wrote the architecture's code, so that all lies in the files as the model has it.

    Raises:
        MoecError: M206 when a weight of the program has no place in the architecture, or stands in another layout
            there.
    """
    _refuse_mixed(program)
    state: dict[str, Tensor] = model.state_dict()
    table = _ends_named(program, model, state)
    stray = next(
        (u for u in weight_uses(program) if u.name not in table and table.get(_key(model, u.kind)) is not u.weight),
        None,
    )
    if stray is not None:
        raise _refuse(program, f"the weights {stray.name!r} have no place in {model.config.model_type}")
    stored: dict[str, Weight] = {}
    for key, names in (_same_names(model, state) if own_files else _file_names(model, state)).items():
        if key not in table:
            raise _refuse(program, f"the weight {key!r} of {model.config.model_type} is not in it")
        weight = lazy.cast(table[key], state[key].dtype)
        stored |= _spread(program, model, key, weight, names, own_files)
    return stored


def _refuse(program: Program, what: str, fix: str = _FIX) -> MoecError:
    return MoecError("M206", f"cannot save the program as a quantized checkpoint: {what}", program.source, fix)


def _refuse_mixed(program: Program) -> None:
    """Raise M206 where the experts of one layer have several widths."""
    for node in moe_nodes(program):
        if any(program.weight_of(matrices) is None for matrices in (MoeCall(node).w_in, MoeCall(node).w_out)):
            raise _refuse(
                program,
                f"the experts of {node.name} differ in width, and servers compute a layer's experts as one",
                "use one width a layer",
            )


def _key(model: Any, kind: str) -> str:
    """The name of the embedding or the head in the model's state; empty for other kinds."""
    module = {"embeddings": model.get_input_embeddings(), "lm_head": model.get_output_embeddings()}.get(kind)
    return (
        next((f"{name}.weight" for name, m in model.named_modules() if m is module), "") if module is not None else ""
    )


def _ends_named(program: Program, model: Any, state: Mapping[str, Tensor]) -> dict[str, Weight]:
    """The program's weights by the model's names. A table that is shared may have one name, or have become two
    tensors."""
    table = {name: weight for name, weight in program.weights.items() if name in state}
    for kind in ("embeddings", "lm_head"):
        key = _key(model, kind)
        uses = [u for u in weight_uses(program) if u.kind == kind and u.weight is not None]
        found = next((u for u in uses if u.name == key), uses[0] if uses else None)  # positions have a table, too
        if key in state and found is not None and found.weight is not None:
            table[key] = found.weight
    head, embedding = (table.get(_key(model, kind)) for kind in ("lm_head", "embeddings"))
    if head is not None and embedding is not None and (head is not embedding or head.coded is not None):
        model.config.tie_word_embeddings = False
    elif model.config.tie_word_embeddings and embedding is not None:
        table.setdefault(_key(model, "lm_head"), embedding)
    return table


def _same_names(model: Any, state: Mapping[str, Tensor]) -> dict[str, list[list[str]]]:
    """What `_file_names` gives, for files that hold the model's own names."""
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    return {name: [[name]] for name in state if name not in tied}


def _file_names(model: Any, state: Mapping[str, Tensor]) -> dict[str, list[list[str]]]:
    """Model name -> for each part that its rows are made of, the names in the files: one, or one for every expert."""
    from transformers.core_model_loading import revert_weight_conversion

    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    meta = {
        name: torch.empty(value.shape, dtype=value.dtype, device=META)
        for name, value in state.items()
        if name not in tied
    }
    files = {name: from_tensor(value, name) for name, value in revert_weight_conversion(model, meta).items()}
    name_of, found = {id(weight): name for name, weight in files.items()}, {}
    for key, (converter, pieces) in collect(model, files, dict(state)).items():
        order = [p for p in converter.source_patterns if p in pieces] if converter else list(pieces)
        found[key] = [[name_of[id(w)] for w in pieces[p]] for p in order]  # type: ignore[union-attr]
    return found


def _spread(
    program: Program, model: Any, key: str, weight: Weight, names: list[list[str]], stacked: bool
) -> dict[str, Weight]:
    """One weight of the model under its names in the files. Of experts it is the captured layout, gate rows before up
    rows, that must be theirs; where they are `stacked` there too, a weight of them has one name."""
    single, relaid = sum(map(len, names)) == 1, any(part.relaid for part in weight.expression())
    if len(weight.shape) == 3 and (relaid or (single and not stacked)):
        raise _refuse(
            program,
            f"the files of {model.config.model_type} hold {key!r} in a layout of their own",
            "compile it without saving",
        )
    if single:
        if weight.coded is not None and not isinstance(_owner(model, key), nn.Linear | nn.Embedding):
            raise _refuse(
                program,
                f"{key!r} is no linear layer in {model.config.model_type}'s files",
                "leave it as it is with a rule of 16 bits",
            )
        return {names[0][0]: weight}
    count, at = len(names[0]), 0
    found: dict[str, Weight] = {}
    if weight.shape[0] != count or any(len(part) != count for part in names) or weight.shape[1] % len(names):
        raise _refuse(
            program,
            f"{key!r} has shape {list(weight.shape)}, the files of {model.config.model_type} hold {count} experts",
        )
    height = weight.shape[1] // len(names)
    for part in names:
        found |= {name: lazy.rows(lazy.select(weight, e), at, at + height) for e, name in enumerate(part)}
        at += height
    return found


def _owner(model: Any, key: str) -> Any:
    return model.get_submodule(key.rpartition(".")[0])


def check_tied(program: Program, config: Any) -> None:
    """Raise M206 where a config ties head and embedding, and the program has made two tensors of them."""
    ends = {u.kind: u.weight for u in weight_uses(program) if u.kind in ("embeddings", "lm_head")}
    if config.tie_word_embeddings and len({id(w) for w in ends.values()}) > 1:
        raise _refuse(
            program,
            "its head is tied to its embedding, but only one of them is quantized",
            "quantize with embeddings and lm_head alike",
        )
