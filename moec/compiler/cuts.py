"""Why an engine cannot equal some models: they say something else themselves when a text comes in pieces, or padded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.frontend.source import Source
from moec.program.decoder_signature import IDS, LOGITS, MASK, PAST, SEQUENCE, cache_inputs
from moec.proof.cache_consistency import apart, check_consistency
from moec.proof.compare import Tolerance

_NOTICED, _LENGTH, _PADDING = 1e-3, 12, 3  # of an output's spread; tokens of a text, and before it
_WAYS = {"token by token": (1,) * _LENGTH, "as a prompt, then token by token": (9, 1, 1, 1), "in two prompts": (7, 5)}


@contextmanager
def cuts_explain(source: Source) -> Iterator[None]:
    """Raise what the block raises; an engine of a decoder that is not equal (M101) as M206, where the untouched model
    differs from itself: no engine equals both of its answers."""
    try:
        yield
    except MoecError as error:
        said = _differs(source) if error.code == "M101" else ""
        if not said:
            raise
        what = f"the model itself says something else when {said}, so that no engine equals both; what was found: "
        fix = "compile its forward alone with --no-cache, or run it in PyTorch"
        raise MoecError("M206", what + error.what, source.text, fix) from error


def _differs(source: Source) -> str:
    """How the untouched model differs from itself on one text, and by how much; empty where it does not."""
    if not cache_inputs(source.inputs) or MASK not in source.domains:
        return ""
    reference = source.reference()
    sample = source.sample({"batch": 1, SEQUENCE: _LENGTH, PAST: 0})
    sample[MASK] = torch.ones_like(sample[MASK])
    found = check_consistency(reference, sample, Tolerance(_NOTICED), ways=_WAYS)
    if found.failed:
        worst = max(found.failed, key=lambda way: way.deviation)
        return f"a text comes {worst.name} than in one go (by {worst.deviation:.2g} of its spread)"
    change = _padded(reference, sample)
    return f"padding stands before a text (by {change:.2g} of its spread)" if change > _NOTICED else ""


def _padded(reference: Engine, sample: dict[str, torch.Tensor]) -> float:
    """How far logits change with padding before a text."""
    more = {name: torch.nn.functional.pad(sample[name], (_PADDING, 0)) for name in (IDS, MASK)}
    want, got = (reference(**{**sample, **extra})[LOGITS] for extra in ({}, more))
    return apart(got[:, _PADDING:].double(), want.double())
