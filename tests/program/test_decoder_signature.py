"""A decoder's signature: what absent inputs mean, where texts stand, what padding hides."""

from __future__ import annotations

import pytest
import torch

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.decoder_signature import (
    PAST,
    SEQUENCE,
    TOTAL,
    cache_inputs,
    complete,
    fixed_inputs,
    growing_inputs,
    layer_of,
    past_name,
    past_names,
    positions,
    present_name,
    without_padding,
)
from moec.program.signature import Input

WINDOW = Input(past_name(1, "conv_state"), torch.float32, ("batch", 3, 4))
CACHE = [Input(n, torch.float32, ("batch", 2, PAST, 4)) for n in past_names(0)]
INPUTS = (
    Input("input_ids", torch.int64, ("batch", SEQUENCE)),
    Input("attention_mask", torch.int64, ("batch", TOTAL)),
    *CACHE,
)


class Echo(Engine):
    name, inputs, outputs = "echo", INPUTS, ()

    def run(self, inputs):  # type: ignore[no-untyped-def]
        return dict(inputs)


def test_names() -> None:
    assert (
        past_names(3) == ("past_key_values.3.key", "past_key_values.3.value")
        and present_name(past_names(3)[1]) == "present.3.value"
    )
    assert cache_inputs(INPUTS) == CACHE and cache_inputs(INPUTS[:2]) == []


def test_an_absent_cache_is_empty_and_an_absent_mask_all_ones() -> None:
    found = complete(INPUTS, {"input_ids": torch.zeros(3, 5, dtype=torch.int64)})
    assert (
        found[CACHE[0].name].shape == (3, 2, 0, 4)
        and found["attention_mask"].shape == (3, 5)
        and found["attention_mask"].all()
    )
    cached = {c.name: torch.zeros(3, 2, 7, 4) for c in CACHE}
    assert complete(INPUTS, {"input_ids": torch.zeros(3, 5, dtype=torch.int64), **cached})["attention_mask"].shape == (
        3,
        12,
    )


def test_half_a_cache_is_not_filled_in() -> None:
    given = {"input_ids": torch.zeros(1, 2, dtype=torch.int64), CACHE[0].name: torch.zeros(1, 2, 3, 4)}
    assert CACHE[1].name not in complete(INPUTS, given)
    with pytest.raises(MoecError, match="missing"):
        Echo()(**given)


def test_a_model_without_cache_gets_nothing() -> None:
    assert complete(INPUTS[:2], {"input_ids": torch.zeros(1, 2)}).keys() == {"input_ids"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"attention_mask": torch.ones(2, 6, dtype=torch.int64)},  # 3 + 4 are 7
        {CACHE[1].name: torch.zeros(2, 2, 5, 4)},  # as long as the keys
        {CACHE[0].name: torch.zeros(2, 3, 3, 4)},  # heads
        {CACHE[0].name: torch.zeros(2, 2, 3, 4, dtype=torch.float64)},
        {CACHE[0].name: torch.zeros(1, 2, 3, 4)},  # batch
    ],
)
def test_a_cache_that_does_not_fit_is_refused(wrong: dict[str, torch.Tensor]) -> None:
    right = {"input_ids": torch.zeros(2, 4, dtype=torch.int64), "attention_mask": torch.ones(2, 7, dtype=torch.int64)}
    right |= {c.name: torch.zeros(2, 2, 3, 4) for c in CACHE}
    assert set(Echo()(**right)) == {i.name for i in INPUTS}
    with pytest.raises(MoecError) as caught:
        Echo()(**{**right, **wrong})
    assert caught.value.code == "M211"


def test_positions_count_what_is_no_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]])
    assert positions(mask, 3).tolist() == [[1, 2, 3], [0, 0, 1], [1, 1, 1]]


def test_padding_is_left_out_of_logits_and_caches() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]])
    sample = {"input_ids": torch.zeros(2, 2), "attention_mask": mask, CACHE[0].name: torch.zeros(2, 1, 2, 1)}
    logits, present = torch.arange(4).reshape(2, 2, 1), torch.arange(8).reshape(2, 1, 4, 1)
    assert without_padding(logits, sample, "logits", INPUTS).flatten().tolist() == [0, 1, 2]
    assert without_padding(present, sample, "present.0.key", INPUTS).flatten().tolist() == [0, 1, 2, 3, 5, 6]
    assert without_padding(logits, {"attention_mask": mask}, "logits", INPUTS) is logits, (
        "a model without a cache is whole"
    )


def test_a_state_that_does_not_grow_is_left_out_for_texts_that_a_call_ends_with_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 1, 1]])
    sample = {"input_ids": torch.zeros(3, 2), "attention_mask": mask, WINDOW.name: torch.zeros(3, 3, 4)}
    state = torch.arange(3)[:, None, None].expand(3, 3, 4)  # its last dimension is as long as the mask
    assert without_padding(state, sample, present_name(WINDOW.name), [WINDOW])[:, 0, 0].tolist() == [0, 2]


ROWS = Input(past_name(2, "compressed"), torch.float32, ("batch", f"{PAST} // 4", 1))


def test_rows_are_compared_that_hold_no_padding_and_mix_none_in() -> None:
    mask = torch.ones(2, 15, dtype=torch.int64)
    mask[0, :5], mask[1, 10:] = 0, 0  # on the left, and on the right
    sample = {"input_ids": torch.zeros(2, 9), "attention_mask": mask, ROWS.name: torch.zeros(2, 1, 1)}
    rows = torch.arange(6).view(2, 3, 1)  # of 15 tokens, by fours
    assert without_padding(rows, sample, present_name(ROWS.name), [ROWS]).flatten().tolist() == [3, 4]


def test_rows_that_a_call_does_not_close_are_still_rows() -> None:
    mask = torch.tensor([[0] * 3 + [1] * 7, [1] * 9 + [0]])
    sample = {"input_ids": torch.zeros(2, 1), "attention_mask": mask, ROWS.name: torch.zeros(2, 2, 1)}
    rows = torch.arange(4).view(2, 2, 1)  # as many as before
    assert without_padding(rows, sample, present_name(ROWS.name), [ROWS]).flatten().tolist() == [2, 3]


def test_states_whose_shape_stays_are_zeros_before_a_text_begins() -> None:
    inputs = (*INPUTS, WINDOW)
    assert growing_inputs(inputs) == CACHE and fixed_inputs(inputs) == [WINDOW] and layer_of(WINDOW.name)[0] == 1
    found = complete(inputs, {"input_ids": torch.zeros(3, 5, dtype=torch.int64)})
    assert torch.equal(found[WINDOW.name], torch.zeros(3, 3, 4)) and found["attention_mask"].shape == (3, 5)


def test_absent_types_of_tokens_are_zeros_for_a_model_that_takes_them() -> None:
    ids = torch.ones(3, 5, dtype=torch.int64)
    encoder = [Input(n, torch.int64, ("batch", "sequence")) for n in ("input_ids", "token_type_ids")]
    assert torch.equal(complete(encoder, {"input_ids": ids})["token_type_ids"], torch.zeros_like(ids))
    given = {"input_ids": ids, "token_type_ids": ids}
    assert complete(encoder, given)["token_type_ids"] is ids and "token_type_ids" not in complete(encoder, {})
    assert "token_type_ids" not in complete(encoder[:1], {"input_ids": ids})
