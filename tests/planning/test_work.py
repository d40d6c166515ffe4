"""One forward of a model."""

from __future__ import annotations

from moec.planning.formats import FORMATS
from moec.planning.step import decode_step, prompt_step
from moec.planning.work import Work
from tests.planning.shapes import mixture

BF16 = FORMATS["bf16"]


def test_a_forward_is_a_step_or_a_prompt() -> None:
    shape = mixture()
    one = Work(shape, BF16, 4, 100)
    assert one.tokens == 4 and one.step == decode_step(shape, BF16, 4, 100)
    whole = Work(shape, BF16, 4, 100, prompt=True)
    assert whole.tokens == 400 and whole.step == prompt_step(shape, BF16, 4, 100)


def test_a_draft_reads_the_cache_once_and_more_experts() -> None:
    shape = mixture()
    one, draft = Work(shape, BF16, 4, 100).step, Work(shape, BF16, 4, 100, rows=4).step
    assert draft.state_bytes == one.state_bytes and draft.tokens == 16
    assert draft.experts > one.experts and draft.flops > 3.9 * one.flops
