"""How alike the experts of a layer are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_COLUMNS = 1 << 16  # of each expert's weights at a time, converted to float32


@dataclass(frozen=True)
class Similarity:
    """Cosines between pairs of experts.

    Attributes:
        of: `outputs` for the same tokens, or `weights`; experts whose neurons stand in another order are alike in their
            outputs only.
        mean: over all pairs. most: the largest. pair: the two experts that have it.
    """

    of: str
    mean: float
    most: float
    pair: tuple[int, int]


def of_outputs(outputs: Tensor) -> Similarity | None:
    """Of what each expert says to the same tokens, `[E, T, H]`: the mean over tokens of the cosine."""
    unit = F.normalize(outputs.float(), dim=-1)
    return _found("outputs", torch.einsum("eth,fth->ef", unit, unit) / outputs.shape[1])


@torch.no_grad()
def of_weights(matrices: Iterable[Tensor]) -> Similarity | None:
    """Of all weights of each expert as one vector; matrices are `[E, ...]`. None where there are none."""
    gram: Tensor | None = None
    for matrix in matrices:
        for part in matrix.flatten(1).split(_COLUMNS, dim=1):  # type: ignore[no-untyped-call]
            rows = part.float()
            product = (rows @ rows.T).double().cpu()
            gram = product if gram is None else gram + product
    if gram is None:
        return None
    norms = gram.diagonal().sqrt().clamp(min=1e-30)
    return _found("weights", (gram / norms / norms[:, None]).float())


def _found(of: str, cosines: Tensor) -> Similarity | None:
    count = len(cosines)
    if count < 2:
        return None
    rows, columns = torch.triu_indices(count, count, 1)
    values = cosines.cpu()[rows, columns]
    at = int(values.argmax())
    return Similarity(of, float(values.mean()), float(values[at]), (int(rows[at]), int(columns[at])))
