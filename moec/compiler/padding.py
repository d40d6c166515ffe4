"""Why an engine cannot equal some models: what stands in their padding reaches the tokens of a text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from moec.errors import MoecError
from moec.frontend.source import Source
from moec.program.decoder_signature import IDS, MASK, PAST, SEQUENCE
from moec.program.signature import dynamic_dimensions

_SIZES = {"batch": 3, SEQUENCE: 9, PAST: 4}
_NOTICED = 1e-3  # of an output's spread; a model that keeps its texts apart changes by rounding


@contextmanager
def padding_explains(source: Source) -> Iterator[None]:
    """Raise what the block raises; an engine that is not equal (M101) as M206, where the untouched model itself gives a
    text other numbers when only the ids in padding change: each implementation may have what it likes there."""
    try:
        yield
    except MoecError as error:
        change = _change(source) if error.code == "M101" else 0.0
        if change <= _NOTICED:
            raise
        what = (
            "the model's own answer to a text changes with what stands in padding or in other texts of the batch "
            f"(by {change:.1g} of its spread), so that no engine can be compared with it; what was found: {error.what}"
        )
        fix = "run it in PyTorch, one text at a time and without padding; or compile a model of it without that part"
        raise MoecError("M206", what, source.text, fix) from error


def _change(source: Source) -> float:
    """How far outputs at real tokens change with the ids in padding, as a part of their spread; 0 where nothing shows
    it."""
    vocabulary = source.domains.get(IDS)
    if vocabulary is None or MASK not in source.domains or not _SIZES.keys() >= set(dynamic_dimensions(source.inputs)):
        return 0.0
    reference, sample = source.reference(), source.sample(_SIZES)
    real = sample[MASK][:, -sample[IDS].shape[1] :].bool()
    other = torch.where(real, sample[IDS], (sample[IDS] + 1) % vocabulary.high)
    pair = [next(iter(reference(**{**sample, IDS: ids}).values())) for ids in (sample[IDS], other)]
    if pair[0].shape[:2] != real.shape:  # an answer to a text, not to each of its tokens
        return 0.0
    a, b = (value[real].double() for value in pair)
    return float((a - b).abs().max() / a.std().clamp(min=1e-9))
