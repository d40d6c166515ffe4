"""DeepSeek-V4's compressors without branches: proven on a small copy, and refused where they do something else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.huggingface.operators import compressed_attention
from moec.huggingface.operators.compressed_attention import adapt_compressed
from moec.huggingface.operators.compressed_states import compressed_layer
from tests.sparse_models import build


@pytest.fixture(scope="module")
def model() -> Any:
    return build("deepseek_v4")


def test_both_kinds_and_the_index_are_found_and_proven(model: Any) -> None:
    assert adapt_compressed(build("deepseek_v4")) == 3
    assert adapt_compressed(nn.Linear(2, 2)) == 0


@pytest.mark.parametrize("name", ["_left_over", "_with_groups_before", "_closed"])
def test_a_variant_that_is_off_by_one_token_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    right = getattr(compressed_attention, name)

    def wrong(*args: Any) -> Any:
        found = right(*args)
        if isinstance(found, tuple):
            return tuple(part.roll(1, 2) for part in found[:1]) + found[1:]
        return found.roll(1, 1 if found.dtype != torch.bool else -1)

    monkeypatch.setattr(compressed_attention, name, wrong)
    with pytest.raises(MoecError, match="does not compute what its parts suggest") as error:
        adapt_compressed(model)
    assert error.value.code == "M206"


def calls(module: Any, hidden: Tensor, lengths: tuple[int, ...]) -> list[Tensor]:
    """Which rows the tokens see, and the rows in the end, fed in calls of these lengths."""
    cache = type("Cache", (), {"layers": [compressed_layer({})]})()
    found, end = [], 0
    for length in lengths:
        start, end = end, end + length
        cache.layers[0].keys = torch.zeros(1, 1, end, 1)
        query = torch.ones(1, length, 24)
        rows, mask = module(hidden[:, start:end], query, torch.arange(start, end)[None], cache, 0)
        found.append(rows)
    return [found[-1], mask[:, :, -1]]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("lengths", [(1,) * 13, (3, 4, 6), (4, 8, 1), (12, 1)])
def test_calls_that_end_inside_of_groups_leave_what_one_call_leaves(layer: int, lengths: tuple[int, ...]) -> None:
    model: Any = build("deepseek_v4")
    adapt_compressed(model)
    hidden = torch.randn(1, 13, 32, generator=torch.Generator().manual_seed(3))
    module = model.model.layers[layer].self_attn.compressor
    with torch.no_grad():
        for got, want in zip(calls(module, hidden, lengths), calls(module, hidden, (13,)), strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
