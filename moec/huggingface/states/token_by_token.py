"""Untouched models that begin anew where several tokens come after others: transformers' scan of Mamba takes no state
("not supported by the kernel path"), and `generate` never asks for it. Their later tokens are run one by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moec.huggingface.operators.scans import scans_of
from moec.huggingface.states.kept_in_modules import places_in_modules
from moec.program.decoder_signature import LOGITS, fixed_inputs, present_name
from moec.program.program import Input

_STATES = {"state", "initial_state", "initial_states"}
Call = Callable[..., dict[str, Tensor]]


def forgets_states(model: nn.Module) -> bool:
    """Whether a scan that the model calls for several tokens has no argument for the state before them; modules that
    keep states in themselves begin anew, too."""
    scans = (scan for module in model.modules() for scan in scans_of(module).values())
    anew = any(not _STATES & set(inspect.signature(scan).parameters) for scan in scans)
    return anew or bool(places_in_modules(model))


def token_by_token(call: Call, caches: Sequence[Input]) -> Call:
    """A call of `moec.huggingface.states.cache.cached_call` that feeds tokens after others one by one. Padding among
    them leaves states that do not grow as they were, as `moec::selective_scan` does."""
    fixed = [spec.name for spec in fixed_inputs(caches)]

    def stepped(*, input_ids: Tensor, attention_mask: Tensor, **past: Tensor) -> dict[str, Tensor]:
        length, total = input_ids.shape[1], attention_mask.shape[1]
        if length == 1 or length == total:
            return call(input_ids=input_ids, attention_mask=attention_mask, **past)
        logits: list[Tensor] = []
        for at, end in enumerate(range(total - length + 1, total + 1)):
            mask = attention_mask[:, :end]
            found = call(input_ids=input_ids[:, at : at + 1], attention_mask=mask, **past)
            logits.append(found.pop(LOGITS))
            kept = {present_name(name): past[name] for name in fixed}
            found |= {name: _where(mask[:, -1], found[name], old) for name, old in kept.items()}
            past = {name: found[present_name(name)] for name in past}
        return {LOGITS: torch.cat(logits, 1), **found}

    return stepped


def _where(mask: Tensor, new: Tensor, old: Tensor) -> Any:
    """The new state of texts whose token is one, the old one of those where it is padding."""
    return new.where(mask.bool().reshape(-1, *[1] * (new.dim() - 1)), old)
