"""A model of the zoo in memory is captured once a run, and anew where anything but its numbers was changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from moec.huggingface import capturing
from moec.huggingface.source import HuggingFaceSource
from tests import zoo
from tests.built import built_as
from tests.kept_captures import count_captures


def llama(seed: int) -> Any:
    return zoo.build("llama", seed, num_hidden_layers=1)


def test_numbers_may_change_and_nothing_else() -> None:
    model, other = llama(0), llama(1)
    assert built_as(model) == built_as(other) != built_as(zoo.build("llama")) != ""
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert built_as(model) == built_as(other)
    assert built_as(copy.deepcopy(model)) == ""
    model.model.layers[0].self_attn.scaling *= 2
    assert built_as(model) == ""
    other.config._attn_implementation = "eager"
    assert built_as(other) == ""


@pytest.mark.parametrize("changed", [False, True])
def test_what_was_kept_of_another_model_is_right_for_this_one(changed: bool) -> None:
    HuggingFaceSource.from_model(llama(1)).capture()
    model = llama(2)
    if changed:
        model.model.layers[0].self_attn.scaling *= 2
    source = HuggingFaceSource.from_model(model)
    sample = source.sample({"batch": 2, "sequence": 5}, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        made = count_captures(capturing, patch)
        program = source.capture()
    assert len(made) == changed
    want, got = source.reference()(**sample)["logits"], program.run(**sample)["logits"]
    real = sample["attention_mask"].bool()
    assert float((want - got)[real].abs().max() / want.std()) < 1e-4
