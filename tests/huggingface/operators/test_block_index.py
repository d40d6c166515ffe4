"""MiniMax-M3's index over blocks, with and without a last block that is full."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moec.errors import MoecError
from moec.huggingface.operators import block_index
from moec.huggingface.operators.attention import _only_in
from moec.huggingface.operators.block_index import adapt_block_index
from tests.sparse_models import build


def test_it_is_found_and_proven() -> None:
    model = build("minimax_m3")
    assert adapt_block_index(model) == 1 and adapt_block_index(torch.nn.Linear(2, 2)) == 0


def test_an_index_of_its_own_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("minimax_m3")
    index: Any = model.model.layers[1].self_attn.indexer  # type: ignore[union-attr, index]
    forward = type(index).forward

    def later(self: Any, hidden: Any, angles: Any, cache: Any, places: Any) -> Any:
        return forward(self, hidden, angles, cache, places - 1)

    later.__signature__ = __import__("inspect").signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(index), "forward", later)
    with pytest.raises(MoecError, match="does not choose the blocks") as error:
        adapt_block_index(model)
    assert error.value.code == "M206"


@pytest.mark.parametrize("local", [0, 1, 2])
def test_blocks_beside_a_token_are_always_seen(local: int) -> None:
    index: Any = build("minimax_m3", index_local_blocks=local).model.layers[1].self_attn.indexer  # type: ignore[union-attr, index]
    assert block_index._chooses_the_same(index)


@pytest.mark.parametrize("length", [4, 7])
def test_the_mask_is_the_models_own(length: int) -> None:
    model: Any = build("minimax_m3")
    index = model.model.layers[1].self_attn.indexer
    blocks = torch.tensor([[[[0, -1], [1, 0]], [[1, -1], [0, 1]]]])
    mask = torch.rand(1, 1, 2, length, generator=torch.Generator().manual_seed(0)) > 0.2
    want = index.build_block_mask(blocks, mask, length, torch.float32, "cpu", torch.arange(2)[None])
    assert torch.equal(_only_in(mask, blocks, index.block_size, 4, length), want == 0)
