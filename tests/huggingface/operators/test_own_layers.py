"""A compile leaves transformers' own caches as they were: the untouched model is made of them."""

from __future__ import annotations

import pytest
from transformers.cache_utils import DynamicCache

from moec.huggingface.operators import compressed_states
from moec.huggingface.states import functional_cache
from tests.sparse_models import build


@pytest.mark.parametrize("make", [compressed_states._with_all_keys, functional_cache._with_keys.__wrapped__])
def test_a_layer_of_ours_takes_the_place_of_none(make) -> None:  # type: ignore[no-untyped-def]
    config = build("deepseek_v4").config
    before = [type(layer) for layer in DynamicCache(config=config).layers]
    assert all(issubclass(make(kind), kind) for kind in before)
    assert [type(layer) for layer in DynamicCache(config=config).layers] == before
