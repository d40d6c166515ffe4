"""What a program is as a checkpoint of an architecture of transformers: its config, and its weights by their names in
the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moec.errors import MoecError
from moec.huggingface.reading import skeleton
from moec.huggingface.saving.carved import CODE, is_carved, plan_carved, read_carved
from moec.huggingface.saving.carved_stock import plan_stock
from moec.huggingface.saving.containers import choose
from moec.huggingface.saving.half_precision import Rounding
from moec.huggingface.saving.plain_weights import is_quantized, with_plain_weights
from moec.huggingface.saving.pruned import is_pruned, pruned_config, refuse_unsayable
from moec.huggingface.saving.same_architecture import check_tied, plan_same
from moec.huggingface.saving.top_k import has_fewer, top_k_config, with_scales_in_weights
from moec.huggingface.saving.upcycled import plan_upcycled, read_upcycled, target_config
from moec.program.program import Program
from moec.program.trainable import TrainableProgram
from moec.weights.lazy import Weight

UNTIED = "upcycle with granularity=1 before training, or save before training and train the checkpoint"
_RECOGNITION = {"find-moe", "fuse-moe"}  # passes that leave a model what it is


@dataclass(frozen=True)
class Planned:
    """A checkpoint that is not written yet.

    Attributes:
        config: of the architecture that holds the program.
        stored: name in the files -> weight, lazy; one that is packed knows its codes (`Weight.coded`).
        where: the source, for refusals.
        packed: whether any weight of the program is packed.
        beside: the folder of the model that it was captured from, or None.
        texts: of files by their names: Python that the config's `auto_map` names, what a form has beside config.json.
        rounding: what 16 bits make of numbers, counted while the files are written.
    """

    config: Any
    stored: dict[str, Weight]
    where: str
    packed: bool
    beside: Path | None
    texts: Mapping[str, str] = field(default_factory=dict)
    rounding: Rounding = field(default_factory=Rounding)


def plan(
    model: Program | TrainableProgram, source: Any = None, dtype: torch.dtype | None = None, untouched: bool = False
) -> Planned:
    """The architecture of transformers that holds a program, and what its files are made of.

    Args:
        model, source, dtype: see `moec.huggingface.saving.save.save_hf`.
        untouched: take a program that no pass has changed, too.

    Raises:
        MoecError: M206 when no architecture of transformers holds the model exactly, with the reasons.
    """
    program = model.program if isinstance(model, TrainableProgram) else model
    source = program.original.source if source is None else source
    config, beside = _config(source, program.source)
    refuse_unsayable(program)
    packed, pruned, fewer = is_quantized(program), is_pruned(program), has_fewer(program)
    program = with_plain_weights(program) if packed else program
    program = with_scales_in_weights(program, config) if fewer else program
    config = pruned_config(program, config) if pruned else config
    steps = {step.name for step in program.history}
    copies = steps & {"upcycle", "merge"}
    code: dict[str, str] = {}
    config = top_k_config(program, config) if fewer and not copies else config
    if is_carved(program):
        target, stored, code = _plan_carved(program, source, config, dtype)
    elif copies and not pruned:
        target, stored = _plan_upcycled(program, config, dtype)
        if packed:
            check_tied(program, target)
    elif steps <= _RECOGNITION and not (packed or untouched):
        fix = "give other engines the model's own folder, or name a pass, such as quantize or upcycle"
        raise MoecError("M206", "no pass has changed the model: there is no other checkpoint", program.source, fix)
    else:
        target, stored = _plan_own(program, source, config, dtype)
    return Planned(target, stored, program.source, packed, beside, code)


def _plan_upcycled(program: Program, config: Any, dtype: torch.dtype | None) -> tuple[Any, dict[str, Weight]]:
    upcycled = read_upcycled(program, config, dtype)
    container = choose(config, upcycled)
    if isinstance(container, str):
        raise MoecError(
            "M206",
            f"the upcycled model has no place in transformers: {container}",
            program.source,
            "compile it without saving, or change the pass" if upcycled.tied else UNTIED,
        )
    target = target_config(config, container, upcycled)
    return target, plan_upcycled(program, target, container, upcycled)


def _plan_carved(
    program: Program, source: Any, config: Any, dtype: torch.dtype | None
) -> tuple[Any, dict[str, Weight], dict[str, str]]:
    """The same for a carved program, and the code that lies beside its weights."""
    forms = read_carved(program)
    stock = plan_stock(program, forms, config, dtype)
    if not isinstance(stock, str):
        return *stock, {}
    target, stored, text = plan_carved(program, forms, _class_of(source, config), config, dtype)
    return target, stored, {CODE: text}


def _class_of(source: Any, config: Any) -> Any:
    """The class of the model that a program was captured from."""
    import transformers

    origin = getattr(source, "origin", None)
    return type(origin.template) if origin is not None else getattr(transformers, config.architectures[0])


def _plan_own(program: Program, source: Any, config: Any, dtype: torch.dtype | None) -> tuple[Any, dict[str, Weight]]:
    """The config and the weights of a program that kept the architecture of its source."""
    model_class = _class_of(source, config)
    floats = [w.dtype for w in program.weights.values() if w.dtype.is_floating_point]
    model = skeleton.build(model_class, config, dtype or floats[0])
    stored = plan_same(program, model)
    model.config.dtype = dtype or floats[0]
    model.config.architectures = [model_class.__name__]
    return model.config, stored


def _config(source: Any, captured_from: str) -> tuple[Any, Path | None]:
    """The dense model's config, and its folder if it has one."""
    origin = getattr(source, "origin", None)
    if origin is not None:
        return origin.template.config, getattr(origin, "beside", None)
    if hasattr(source, "to_dict"):
        return source, None
    if isinstance(source, str | Path) and (Path(source) / "config.json").exists():
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False), Path(source)
    folder = "pass source=the model's folder"
    if source is None:
        raise MoecError("M206", "the program does not know the model that it is of", captured_from, folder)
    what = "only a model of the transformers library can be saved as a checkpoint for it"
    fix = folder if isinstance(source, str | Path) else "compile it without saving"
    raise MoecError("M206", what, str(getattr(source, "text", source)), fix)
