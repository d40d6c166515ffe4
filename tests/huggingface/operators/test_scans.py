"""Mixers of state space models with moec's scan: what transformers' own say, in pieces too, or refused."""

from __future__ import annotations

import sys
from copy import deepcopy
from inspect import signature
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.huggingface.operators.scans import use_moec_scans
from tests.scanning_models import MAMBA, MAMBA2, drawn_ids, scanning_model

LIMIT = 2e-5


def apart(found: Tensor, want: Tensor, mask: Tensor) -> float:
    return float((found - want)[mask.bool()].abs().max() / want.std())


@torch.no_grad()
def in_pieces(model: Any, ids: Tensor, mask: Tensor, ends: list[int]) -> Tensor:
    """Logits of one text that comes in pieces, the cache of transformers in between."""
    name = "past_key_values" if "position_ids" in signature(model.forward).parameters else "cache_params"
    cache, found, places = None, [], (mask.cumsum(-1) - 1).clamp(min=0)
    for start, end in pairwise([0, *ends]):
        more = {"position_ids": places[:, start:end]} if name == "past_key_values" else {}
        out = model(ids[:, start:end], attention_mask=mask[:, :end], use_cache=True, **{name: cache}, **more)
        cache = out[name]
        found.append(out.logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("name", [*MAMBA, *MAMBA2])
def test_mixers_say_the_same_in_one_go_and_in_pieces(name: str) -> None:
    model = scanning_model(name)
    changed = deepcopy(model)
    assert use_moec_scans(changed) >= 1
    ids = drawn_ids(2, 13)  # chunks of Mamba-2 have 8 tokens
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad():
        want = model(ids, attention_mask=mask, use_cache=False).logits
        found = changed(ids, attention_mask=mask, use_cache=False).logits
    assert apart(found, want, mask) <= LIMIT
    assert apart(in_pieces(changed, ids, mask, [9, 12, 13]), want, mask) <= LIMIT


def test_transformers_own_scan_forgets_the_state_of_a_piece() -> None:
    """What makes the comparison above one with the whole text: Mamba's scan has no initial state there."""
    model, ids = scanning_model("jamba"), drawn_ids(2, 13)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        want = model(ids, use_cache=False).logits
    assert apart(in_pieces(model, ids, mask, [9, 12, 13]), want, mask) > 100 * LIMIT


@pytest.mark.parametrize(("name", "scan"), [("mamba", "mamba_selective_scan"), ("mamba2", "mamba2_chunk_scan")])
def test_another_scan_of_that_name_is_refused(name: str, scan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = scanning_model(name)
    module: Any = sys.modules[type(model).__module__]
    own = getattr(module, scan)

    def faster(states: Tensor, dt: Tensor, A: Tensor, *args: Any, **kwargs: Any) -> Any:
        return own(states, dt, A * 1.01, *args, **kwargs)

    monkeypatch.setattr(module, scan, faster)
    with pytest.raises(MoecError) as error:
        use_moec_scans(model)
    assert error.value.code == "M206" and "another scan than its name says" in error.value.what


def test_models_without_scans_are_left_alone() -> None:
    model = scanning_model("minimax")
    assert use_moec_scans(model) == 0
