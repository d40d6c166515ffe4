"""Where a call has padding, and where the windows of its texts end."""

from __future__ import annotations

import torch

from moec.huggingface.operators.padding import Padding, behind, ends_of

MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]])


def test_what_stands_before_a_text_counts_in_the_call_that_begins_it() -> None:
    first, later = Padding.of(MASK, 4), Padding.of(torch.cat([torch.zeros_like(MASK), MASK], 1), 4)
    assert first.counts.long().tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]] and first.ends.tolist() == [
        4,
        4,
        2,
    ]
    assert later.counts.long().equal(MASK) and later.ends.tolist() == [4, 4, 2]


def test_a_window_goes_on_behind_the_last_token_that_counts() -> None:
    whole = torch.arange(6.0).expand(3, 1, 6)  # a window of 2, and 4 tokens
    assert behind(whole, 2, ends_of(MASK)).tolist() == [[[4, 5]], [[4, 5]], [[2, 3]]]
    assert behind(whole, 2, None).tolist() == [[[4, 5]]] * 3
    assert behind(whole, 2, ends_of(torch.zeros_like(MASK))).tolist() == [[[0, 1]]] * 3, "no token: as it was"
