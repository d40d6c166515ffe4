"""What a transformers model returns and computes from labels, beside the tensors that are compared."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from typing import Any

from moec.program.decoder_signature import is_present
from moec.program.original import SWITCH, Loss, Original, OutputForm, Place
from moec.program.program import Program

_LOSSES: dict[str, Loss] = {"ForCausalLM": "next token", "ForMaskedLM": "same token"}


def watched(model: Any) -> list[type]:
    """Let a model's forward note of which class its result is: the list is empty until it has run."""
    forward, kinds = model.forward, []

    @wraps(forward)
    def watching(*args: Any, **kwargs: Any) -> Any:
        found = forward(*args, **kwargs)
        kinds.append(type(found))
        return found

    model.forward = watching
    return kinds


def original_of(program: Program, model: Any, kinds: list[type], source: Any) -> Original:
    """What a captured model was: of its results those that are the program's outputs, without a cache.

    Args:
        model: the copy that was captured.
        kinds: what `watched` noted. source: where the model came from.
    """
    names = [name for name in program.outputs if not is_present(name)]
    form = OutputForm.of(kinds[-1](**{name: Place(name) for name in names})) if kinds else None
    weight = getattr(model.config.get_text_config(), "router_aux_loss_coef", None)
    saved = model.state_dict()
    return replace(
        program.original,
        form=form,
        outside={n: program.weights[n] for n in program.original.fixed & program.weights.keys() if n not in saved},
        loss=_LOSSES.get(str(getattr(model, "loss_type", "")), ""),
        router_aux_loss_coef=SWITCH if weight is None else float(weight),
        source=source,
    )
