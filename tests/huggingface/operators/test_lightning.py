"""MiniMax's lightning attention as one operator: what the module says, or refused."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from moec.errors import MoecError
from moec.huggingface.operators.lightning import use_moec_lightning
from tests.scanning_models import drawn_ids, scanning_model


def test_it_says_what_the_module_says() -> None:
    model = scanning_model("minimax")
    changed = deepcopy(model)
    assert use_moec_lightning(changed) == 2
    for batch, length in ((1, 1), (2, 7), (2, 8), (3, 17)):  # blocks have 8 tokens
        ids = drawn_ids(batch, length)
        mask = torch.ones_like(ids)
        mask[0, : length // 3] = 0
        with torch.no_grad():
            want, found = (m(ids, attention_mask=mask, use_cache=False).logits for m in (model, changed))
        assert (found - want)[mask.bool()].abs().max() <= 2e-5 * want.std()


def test_the_same_parts_with_another_meaning_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scanning_model("minimax")
    kind: Any = type(model.model.layers[1].self_attn)
    own = kind.forward

    def halved(self: Any, *args: Any, **kwargs: Any) -> Any:
        y, state = own(self, *args, **kwargs)
        return y * 0.5, state

    monkeypatch.setattr(kind, "forward", halved)
    with pytest.raises(MoecError) as error:
        use_moec_lightning(model)
    assert error.value.code == "M206" and "not what its parts suggest" in error.value.what
