"""`moec plan`: a model's cost from its config, whichever source it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moec.compiler.open import described_kind, without_config
from moec.planning.estimate import Estimate, estimate
from moec.planning.shape import Shape

USUAL = 4096  # tokens of a text where nobody says how many


def plan(
    model: str | Path,
    *,
    formats: Sequence[str] = ("bf16",),
    devices: Sequence[str] = (),
    batches: Sequence[int] = (1,),
    context: int | None = None,
    ranks: Sequence[int] = (),
    versus: str | Path | None = None,
) -> Estimate:
    """What a model takes in memory and time, from its config alone; files of weights need not be there.

    Args:
        model: a config.json, a folder that holds one, or a hub id in the local cache.
        formats, devices, batches, context, ranks: see `moec.planning.estimate.estimate`. Without a context, 4,096
            tokens, or all that the model's positions reach where that is less.
        versus: another model, named likewise.

    Raises:
        MoecError: M204, M206 or M209 where the config cannot be read, M201 for a model that has none; M201 and M202 see
            `estimate`.
    """
    shape = _shape(model)
    other = _shape(versus) if versus is not None else None
    longest = min(m.longest or USUAL for m in (shape, other) if m is not None)
    tokens = min(USUAL, longest) if context is None else context
    return estimate(shape, formats, devices, batches, tokens, ranks, other)


def _shape(model: str | Path) -> Shape:
    shape = described_kind(model).shape(str(model))
    if shape is None:
        raise without_config(model)
    return shape
