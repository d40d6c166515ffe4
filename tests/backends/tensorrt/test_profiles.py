"""Ranges of shapes: what engines are built for, and which one a call gets."""

from __future__ import annotations

import json

import pytest
import torch

from moec.backends.tensorrt.fixed_signature import buffers
from moec.backends.tensorrt.profiles import Profile, capacity, ends, fitting, limits_of, profiles
from moec.errors import MoecError
from moec.program.conditions import Condition, broken
from moec.program.program import Input

PAST = Input("past_key_values.0.key", torch.float32, ("batch", 2, "past_sequence", 8))
DECODER = (
    Input("input_ids", torch.int64, ("batch", "sequence")),
    Input("attention_mask", torch.int64, ("batch", "past_sequence + sequence")),
    PAST,
)
ENCODER = DECODER[:1]


def shapes(batch: int, new: int, past: int) -> dict[str, tuple[int, ...]]:
    return {"input_ids": (batch, new), "attention_mask": (batch, new + past), PAST.name: (batch, 2, past, 8)}


def test_a_decoder_decodes_and_prefills() -> None:
    decode, prefill = profiles(DECODER, {"past_sequence": 100})
    assert (
        decode.sizes == {"batch": (1, 1, 8), "sequence": (1, 1, 1), "past_sequence": (0, 25, 100)}
        and decode.tokens == 8
    )
    assert decode.shapes["attention_mask"] == ((1, 1), (1, 26), (8, 101)) and decode.shapes[PAST.name] == (
        (1, 2, 0, 8),
        (1, 2, 25, 8),
        (8, 2, 100, 8),
    )
    assert (
        prefill.sizes["sequence"] == (1, 256, 1024)
        and prefill.sizes["past_sequence"] == (0, 0, 100)
        and prefill.tokens == 8192
    )


def test_a_fixed_cache_has_a_view_that_is_never_empty() -> None:
    """TensorRT is told of buffers, whose size it knows, and of how many places a call looks at."""
    fixed = buffers(DECODER, capacity({"past_sequence": 100, "sequence": 20}))
    decode, prefill = profiles(fixed, {"past_sequence": 100, "sequence": 20})
    assert decode.sizes == {"batch": (1, 1, 8), "sequence": (1, 1, 1), "view": (1, 30, 120)} and decode.tokens == 8
    assert prefill.sizes["view"] == (1, 5, 120) and prefill.sizes["sequence"] == (1, 5, 20)
    assert decode.shapes[PAST.name] == ((1, 2, 120, 8), (1, 2, 120, 8), (8, 2, 120, 8)) and decode.tuned == 1
    assert decode.shapes["attention_mask"][0] == (1, 1) and "cache_length" not in decode.shapes
    assert decode.holds({"batch": 1, "sequence": 1, "past_sequence": 119}) and decode.holds({"past_sequence": 0})
    assert not decode.holds({"batch": 1, "sequence": 1, "past_sequence": 120})


def test_other_models_run_alone_and_in_batches() -> None:
    single, batch = profiles(ENCODER, {"batch": 4}, "throughput")
    assert (single.name, single.sizes["batch"], batch.name, batch.sizes["batch"]) == (
        "single",
        (1, 1, 1),
        "batch",
        (1, 4, 4),
    )
    assert profiles([Input("x", torch.float32, (2, 3))], {}) == []


def test_they_survive_json() -> None:
    for profile in profiles(DECODER, {}):
        assert Profile.of(json.loads(json.dumps(profile.to_dict()))) == profile


def test_the_narrowest_that_fits_is_taken() -> None:
    found = profiles(DECODER, {"past_sequence": 100, "batch": 4, "sequence": 50})
    assert fitting(found, DECODER, shapes(2, 1, 7), "engine") == 0
    assert fitting(found, DECODER, shapes(2, 2, 7), "engine") == 1
    assert fitting([], DECODER, shapes(2, 2, 7), "engine") == 0


@pytest.mark.parametrize(
    ("size", "advice"),
    [((5, 1, 0), "max_batch=N"), ((1, 51, 0), "max_sequence=N"), ((1, 1, 101), "max_past_sequence=N")],
)
def test_outside_of_all_is_an_error_with_the_option_that_helps(size: tuple[int, int, int], advice: str) -> None:
    found = profiles(DECODER, {"past_sequence": 100, "batch": 4, "sequence": 50})
    with pytest.raises(MoecError, match="outside of the engine's profiles") as caught:
        fitting(found, DECODER, shapes(*size), "engine")
    assert caught.value.code == "M211" and advice in caught.value.fix


def test_sizes_inside_and_outside() -> None:
    decode, prefill = profiles(DECODER, {"past_sequence": 100, "batch": 4, "sequence": 50})
    assert (
        decode.holds({"batch": 4, "sequence": 1})
        and not decode.holds({"batch": 4, "sequence": 2})
        and prefill.holds({"sequence": 50, "past_sequence": 100})
    )
    assert not prefill.holds({"batch": 5}) and not prefill.holds({"past_sequence": 101})
    assert [p.name for p in profiles(DECODER, {"sequence": 1})] == ["decode"] and [
        p.name for p in profiles(ENCODER, {"batch": 1})
    ] == ["single"]


def test_limits_are_read_from_the_target() -> None:
    assert limits_of({"precision": "fp16", "max_batch": "4", "max_sequence": "64"}) == {"batch": 4, "sequence": 64}


def test_tables_show_what_differs() -> None:
    assert profiles(DECODER, {"past_sequence": 4})[0].row() == {
        "profile": "decode",
        "batch": "1 … 8",
        "sequence": "1",
        "past_sequence": "0 … 1 … 4",
    }


def test_no_profile_holds_what_the_conditions_of_a_dimension_exclude() -> None:
    conditions = (Condition("sequence >= 7"), Condition("sequence <= 72"), Condition("batch * sequence <= 100"))
    single, batch = profiles(ENCODER, {}, conditions=conditions)
    assert single.sizes == {"batch": (1, 1, 1), "sequence": (7, 72, 72)} and batch.sizes["sequence"] == (7, 72, 72)
    assert batch.shapes["input_ids"][0] == (1, 7) and batch.tokens == 8 * 72
    even = profiles(ENCODER, {"sequence": 9}, conditions=(Condition("sequence % 2 == 0"),))
    assert even[0].sizes["sequence"] == (2, 2, 8)
    none = profiles(ENCODER, {"sequence": 9}, conditions=(Condition("sequence >= 700"),))
    assert none[0].sizes["sequence"] == (1, 2, 9), "the option says what is to be built; the engine refuses the rest"


@pytest.mark.parametrize("fixed", [False, True])
def test_the_ends_of_the_widest_profile_are_conditions(fixed: bool) -> None:
    found = profiles(buffers(DECODER, 30) if fixed else DECODER, {"past_sequence": 20, "sequence": 10})
    conditions = ends(found)
    assert [str(c) for c in conditions] == ["batch <= 8", "sequence <= 10", *([] if fixed else ["past_sequence <= 20"])]
    assert broken(conditions, {"batch": 8, "sequence": 10, "past_sequence": 20}) is None
    assert str(broken(conditions, {"batch": 9, "sequence": 1, "past_sequence": 0})) == "batch <= 8"
    assert ends([]) == ()


def test_a_least_size_is_a_condition_too() -> None:
    odd = profiles(ENCODER, {"batch": 4}, conditions=(Condition("3 <= sequence"),))
    assert "3 <= sequence" in str(ends(odd)[-1]) and broken(ends(odd), {"batch": 1, "sequence": 2}) is not None
