"""The account of a model: what is said of it, and what the user may leave out."""

from __future__ import annotations

import json

import pytest
import torch

from moec.errors import MoecError
from moec.frontend.account import Account, LeaveOut, LeftOut
from moec.frontend.module_source import ModuleSource

ACCOUNT = Account(
    "Model",
    "as config.json says (Model)",
    ("input_ids",),
    12,
    7,
    (
        LeftOut("input", "labels", "only a loss needs it"),
        LeftOut("input", "pixel_values", "you asked for it", asked=True),
        *(LeftOut("tensor", f"mtp.{i}", "it predicts further tokens") for i in range(5)),
    ),
    ("adapter: LORA",),
)


def test_lines_say_what_is_left_out_and_why() -> None:
    first, note, *left = ACCOUNT.lines()
    assert "7 of 12 tensors" in first and "labels" in first and note == "adapter: LORA"
    assert left == [
        "left out: input pixel_values: you asked for it",
        "left out: tensor mtp.0, mtp.1, mtp.2 and 2 more: it predicts further tokens",
    ]


def test_plain_data_is_json_and_keeps_every_name() -> None:
    read = json.loads(json.dumps(ACCOUNT.to_plain()))
    assert [x["name"] for x in read["left_out"]] == [x.name for x in ACCOUNT.left_out]


def test_a_module_is_what_it_is() -> None:
    source = ModuleSource(torch.nn.Linear(2, 3), {"input": torch.ones(2, 2)})
    assert source.account().inputs == ("input",) and not source.account().left_out


def test_patterns_with_commas() -> None:
    asked = LeaveOut(["pixel_*, bbox", "cls.*"])
    assert [name in asked for name in ("pixel_values", "bbox", "cls.bias", "input_ids")] == [True, True, True, False]
    asked.check(())


def test_a_pattern_that_leaves_nothing_out_is_refused() -> None:
    asked = LeaveOut(["bbox", "pixel_value"])
    assert "bbox" in asked and "pixel_values" not in asked
    with pytest.raises(MoecError) as caught:
        asked.check(["pixel_values", "bbox"])
    assert caught.value.code == "M201" and "'pixel_value'" in caught.value.what and "pixel_values" in caught.value.fix
