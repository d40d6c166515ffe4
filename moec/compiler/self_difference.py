"""Why an engine cannot equal some models: they differ from themselves. What stands in their padding reaches the tokens
of a text, or they say something else when a text comes in pieces, or padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.frontend.source import Source
from moec.program.decoder_signature import IDS, LOGITS, MASK, PAST, SEQUENCE, cache_inputs
from moec.program.signature import dynamic_dimensions
from moec.proof.cache_consistency import apart, check_consistency
from moec.proof.compare import Tolerance

_NOTICED = 1e-3  # of an output's spread; a model that keeps its texts apart changes by rounding
_SIZES = {"batch": 3, SEQUENCE: 9, PAST: 4}
_LENGTH, _BEFORE = 12, 3  # tokens of a text that comes in pieces, and of padding before it
_WAYS = {"token by token": (1,) * _LENGTH, "as a prompt, then token by token": (9, 1, 1, 1), "in two prompts": (7, 5)}

Reason = tuple[str, str]  # what the model does, and a way out


@contextmanager
def explained_by_model(source: Source) -> Iterator[None]:
    """Raise what the block raises; an engine that is not equal (M101) as M206, where the untouched model differs from
    itself: no engine equals both of its answers. What was found is said too, since the engine may be at fault as
    well."""
    try:
        yield
    except MoecError as error:
        load = cache(source.reference)
        found = (by_padding(source, load) or by_cuts(source, load)) if error.code == "M101" else None
        if found is None:
            raise
        raise MoecError("M206", f"{found[0]}; what was found: {error.what}", source.text, found[1]) from error


def by_padding(source: Source, load: Callable[[], Engine]) -> Reason | None:
    """Whether the model gives a text other numbers when only the ids in padding change, where each implementation may
    have what it likes. `load` gives the untouched model."""
    vocabulary = source.domains.get(IDS)
    if vocabulary is None or MASK not in source.domains or not _SIZES.keys() >= set(dynamic_dimensions(source.inputs)):
        return None
    reference, sample = load(), source.sample(_SIZES)
    real = sample[MASK][:, -sample[IDS].shape[1] :].bool()
    other = torch.where(real, sample[IDS], (sample[IDS] + 1) % vocabulary.high)
    pair = [next(iter(reference(**{**sample, IDS: ids}).values())) for ids in (sample[IDS], other)]
    if pair[0].shape[:2] != real.shape:  # an answer to a text, not to each of its tokens
        return None
    a, b = (value[real].double() for value in pair)
    change = float((a - b).abs().max() / a.std().clamp(min=1e-9))
    what = (
        "the model's own answer to a text changes with what stands in padding or in other texts of the batch "
        f"(by {change:.1g} of its spread), so that no engine can be compared with it"
    )
    fix = "run it in PyTorch, one text at a time and without padding; or compile a model of it without that part"
    return None if change <= _NOTICED else (what, fix)


def by_cuts(source: Source, load: Callable[[], Engine]) -> Reason | None:
    """Whether a decoder says something else itself when a text comes in pieces, or with padding before it. `load` gives
    the untouched model."""
    if not cache_inputs(source.inputs) or MASK not in source.domains:
        return None
    reference = load()
    sample = source.sample({"batch": 1, SEQUENCE: _LENGTH, PAST: 0})
    sample[MASK] = torch.ones_like(sample[MASK])
    failed = check_consistency(reference, sample, Tolerance(_NOTICED), ways=_WAYS).failed
    change = 0.0 if failed else _padded(reference, sample)
    if failed:
        worst = max(failed, key=lambda way: way.deviation)
        said = f"a text comes {worst.name} than in one go (by {worst.deviation:.2g} of its spread)"
    elif change > _NOTICED:
        said = f"padding stands before a text (by {change:.2g} of its spread)"
    else:
        return None
    what = f"the model itself says something else when {said}, so that no engine equals both"
    return what, "compile its forward alone with --no-cache, or run it in PyTorch"


def _padded(reference: Engine, sample: Mapping[str, Tensor]) -> float:
    """How far logits change with padding before a text."""
    more = {name: torch.nn.functional.pad(sample[name], (_BEFORE, 0)) for name in (IDS, MASK)}
    want, got = (reference(**{**sample, **extra})[LOGITS] for extra in ({}, more))
    return apart(got[:, _BEFORE:].double(), want.double())
