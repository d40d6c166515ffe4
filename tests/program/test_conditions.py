"""Conditions: on which sizes they hold, where their bounds are, and what is said where one is broken."""

from __future__ import annotations

import json

import pytest
import torch

from moec.errors import MoecError
from moec.program.conditions import Assumptions, Condition, Values, bounds, broken, limits, nearest, require, stated

SHORT = Condition("sequence <= 72")
FRAMES = Condition("frames >= 7")
WINDOW = Condition("past_sequence + sequence <= 16")
CAPACITY = Condition("trunc(float(batch * sequence) / 4.0) == 30")
EVEN = Condition("width % 4 == 0")


def test_holds_on_one_side_of_the_bound() -> None:
    assert SHORT.holds({"sequence": 72, "batch": 2}) and not SHORT.holds({"sequence": 73, "batch": 2})
    assert CAPACITY.holds({"batch": 4, "sequence": 30}) and not CAPACITY.holds({"batch": 4, "sequence": 31})
    assert not Condition("batch % past == 0").holds({"batch": 3, "past": 0})


def test_a_dimension_that_is_not_named_may_be_of_any_size() -> None:
    assert SHORT.holds({"batch": 2}) and WINDOW.holds({"sequence": 99})
    assert not Condition("a_b <= 3").holds({"a.b": 4}), "a name is found as Python writes it"


def test_equal_texts_are_one_condition() -> None:
    assert Condition("sequence<=72") == SHORT == Condition("( sequence ) <= 72")
    assert len({SHORT, Condition("sequence<=72")}) == 1 and SHORT.names == {"sequence"}
    assert str(WINDOW) == "past_sequence + sequence <= 16"


def test_bounds_name_both_sides() -> None:
    assert bounds([SHORT, FRAMES]) == {"sequence": [72, 73], "frames": [6, 7]}
    assert {15, 16, 17} <= set(bounds([WINDOW])["sequence"])
    assert {119, 120, 123, 124} <= set(bounds([CAPACITY])["batch"])
    assert {3, 4, 5} <= set(bounds([EVEN])["width"]) and bounds([]) == {}
    assert bounds([Condition("sequence <= 100000")]) == {"sequence": [100_000, 100_001]}


@pytest.mark.parametrize("condition", [SHORT, WINDOW, CAPACITY, FRAMES, EVEN])
@pytest.mark.parametrize("size", [0, 1, 9, 500])
def test_the_nearest_sizes_satisfy_all(condition: Condition, size: int) -> None:
    asked = dict.fromkeys(("batch", "sequence", "past_sequence", "frames", "width"), size)
    found = nearest([condition], asked)
    assert found is not None and condition.holds(found) and found.keys() == asked.keys()
    assert (found == asked) is condition.holds(asked)
    assert all(found[name] == size for name in set(asked) - condition.names)


def test_no_sizes_satisfy_a_contradiction() -> None:
    assert nearest([Condition("batch < 3"), Condition("batch > 5")], {"batch": 2}) is None


def test_a_broken_one_is_said_in_three_lines_with_sizes_that_hold() -> None:
    require([SHORT, FRAMES], {"sequence": 72, "frames": 7}, "engine")
    assert broken([SHORT, FRAMES], {"sequence": 72, "frames": 6}) is FRAMES
    with pytest.raises(MoecError, match="sequence <= 72, and was given sequence=80") as caught:
        require([FRAMES, SHORT], {"sequence": 80, "frames": 9}, "engine")
    assert caught.value.code == "M213" and caught.value.exit_code == 2 and str(caught.value).count("\n") == 2
    assert "such as sequence=72" in caught.value.fix and caught.value.where == "engine"


IDS = Values("input_ids", 0, 95)


@pytest.mark.parametrize("value", [-1, -(2**40), 96, 2**40])
def test_values_outside_are_refused(value: int) -> None:
    IDS.require(torch.tensor([[0, 95]]), "engine")
    IDS.require(torch.zeros(0, 3, dtype=torch.int64), "engine")
    with pytest.raises(MoecError, match=f"input_ids holds {value}") as caught:
        IDS.require(torch.tensor([[0, value, 95]]), "engine")
    assert caught.value.code == "M214" and caught.value.exit_code == 2 and "0 to 95" in caught.value.fix


def test_plain_data_reads_back_the_same() -> None:
    assumed = Assumptions((SHORT, CAPACITY, EVEN), (IDS,))
    assert Assumptions.of_plain(json.loads(json.dumps(assumed.to_plain()))) == assumed
    assert str(assumed).endswith("0 <= input_ids <= 95")


@pytest.mark.parametrize("data", [
    None, [], {}, {"sizes": [], "values": [["a", 1]]}, {"sizes": [3], "values": []}, {"sizes": "ab", "values": 4},
    {"sizes": ["open('x')"], "values": []}, {"sizes": [], "values": [["a", "x", 2]]},
])  # fmt: skip
def test_other_data_is_refused(data: object) -> None:
    with pytest.raises(ValueError):
        Assumptions.of_plain(data)


def test_the_numbers_that_stand_in_a_condition() -> None:
    assert stated(WINDOW) == {15, 16, 17} and stated(Condition("a == b")) == set()


def test_limits_of_a_dimension() -> None:
    given = [SHORT, FRAMES, WINDOW, Condition("sequence >= 3")]
    assert limits(given, "sequence") == (3, 72) and limits(given, "frames") == (7, None)
    assert limits(given, "past_sequence") == (0, None) and limits([Condition("a <= 70000")], "a") == (0, 70_000)
    assert limits([Condition("a < 1"), Condition("a > 2")], "a") == (0, None), "no size at all"
