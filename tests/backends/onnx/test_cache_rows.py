"""Caches with padding around a graph whose cache has none: what goes in and what comes out is the program's."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from moec.backends.onnx.cache_rows import call_compact
from moec.backends.onnxruntime.attention.token_order import masks
from moec.program.decoder_signature import IDS, MASK, past_names, present_name

KEY, VALUE = past_names(0)


def graph(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums what a row's tokens hold so far; a token's key is its id. Behind the cache's tokens nothing is read."""
    ids, mask = inputs[IDS], inputs[MASK].bool()
    batch, new = ids.shape
    assert batch == 1 or new in (1, mask.shape[1]), "several texts that go on by several tokens"
    logits, present = torch.zeros(batch, new, 1), torch.full((batch, 1, mask.shape[1], 2), torch.nan)
    for row in range(batch):
        tokens = int(mask[row, : mask.shape[1] - new].sum())
        present[row, :, :tokens] = inputs[KEY][row, :, :tokens]
        for place in range(new):
            if mask[row, mask.shape[1] - new + place]:
                present[row, :, tokens] = float(ids[row, place])
                tokens += 1
                logits[row, place] = present[row, 0, :tokens, 0].sum()
    return {"logits": logits, present_name(KEY): present, present_name(VALUE): present * 2}


@pytest.mark.parametrize(("past", "new"), [(0, 5), (6, 1), (4, 3)], ids=str)
def test_a_cache_may_hold_padding(past: int, new: int) -> None:
    mask = masks(past, new)
    ids = torch.arange(1, 1 + mask.numel()).reshape(mask.shape)
    cache = ids[:, None, :past, None].float().expand(-1, 1, -1, 2)
    inputs = {IDS: ids[:, past:], MASK: mask, KEY: cache, VALUE: cache * 2}
    found = call_compact(graph, inputs)
    real = mask.bool()
    assert torch.equal(
        found["logits"][..., 0][real[:, past:]], (ids * mask).cumsum(1).float()[:, past:][real[:, past:]]
    )
    keys = found[present_name(KEY)][:, 0, :, 0]
    assert torch.equal(keys[real], ids.float()[real]) and keys.isfinite().all()
    assert torch.equal(found[present_name(VALUE)][:, 0, :, 0][real], 2 * keys[real])
    if past and new == 1:
        assert not torch.equal(graph(inputs)["logits"], found["logits"]), "the graph alone takes padding for tokens"
