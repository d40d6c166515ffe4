"""Attention of transformers as one operator: masks, options, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.masking_utils import and_masks, causal_mask_function, sliding_window_causal_mask_function

from moec.errors import MoecError
from moec.huggingface.attention import _among_tokens, _forward, _is_causal
from moec.huggingface.source import HuggingFaceSource
from tests.zoo import build


def rules(name: str) -> list[dict[str, Any]]:
    program = HuggingFaceSource.from_model(build(name)).capture()
    nodes = program.nodes(torch.ops.moec.attention.default)
    return [{**n.kwargs, "mask": n.args[3].name, "sinks": len(n.args) > 4 and n.args[4] is not None} for n in nodes]  # type: ignore[union-attr]


def test_gemma2_caps_its_scores_and_only_every_other_layer_has_a_window() -> None:
    first, second = rules("gemma2")
    assert first["softcap"] == second["softcap"] == 50.0 and first["scale"] == 8**-0.5
    assert first["causal"] and second["causal"] and first["mask"] != second["mask"], "one mask has a window, the other has none"


def test_gpt_oss_has_sinks() -> None:
    assert all(rule["sinks"] for rule in rules("gpt_oss"))


def test_what_counts_as_causal() -> None:
    assert _is_causal(None) and _is_causal(causal_mask_function) and _is_causal(sliding_window_causal_mask_function(3))
    assert not _is_causal(lambda b, h, q, k: q >= 0) and not _is_causal(lambda b, h, q, k: k <= q + 1)
    batch = torch.zeros(2, 4, dtype=torch.bool, device="meta")
    assert not _is_causal(and_masks(causal_mask_function, lambda b, h, q, k: batch[b, k])), "it reads the inputs, so nobody knows"


def test_padding_takes_no_room_in_a_window() -> None:
    """The last token sees itself and the two tokens before it, wherever padding lies; padding on the left leaves every place as it was."""
    window, batch = sliding_window_causal_mask_function(3), torch.arange(3)
    padding = torch.tensor([[1, 1, 1, 0, 0, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    seen = [_among_tokens(window, padding)(b, 0, torch.tensor(5), torch.arange(6)) & (padding[b] > 0) for b in batch]
    assert [s.nonzero().flatten().tolist() for s in seen] == [[1, 2, 5], [3, 4, 5], [3, 4, 5]]
    assert (window(0, 0, torch.tensor(5), torch.arange(6)) & (padding[0] > 0)).nonzero().flatten().tolist() == [5], "what it would see else"


@pytest.mark.parametrize(("extra", "reason"), [({"position_bias": torch.zeros(1)}, "position_bias"), ({}, "causal mask of the kernel's own")])
def test_what_the_operator_cannot_express_is_refused(extra: dict[str, Any], reason: str) -> None:
    module, heads = SimpleNamespace(is_causal=True), torch.zeros(1, 2, 3, 4)
    with pytest.raises(MoecError, match=reason) as caught:
        _forward(module, heads, heads, heads, None, scaling=1.0, **extra)
    assert caught.value.code == "M206" and "--no-cache" in caught.value.fix
