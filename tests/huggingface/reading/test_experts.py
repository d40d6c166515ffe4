"""What the experts interface gives that moec must refuse, and the layouts that it brings into canonical form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moec.errors import MoecError
from moec.huggingface.reading.experts import use_moec_experts
from moec.huggingface.reading.folder import ModelFolder
from tests.huggingface.conftest import Saved


def private(path: Any) -> tuple[Any, Any, dict[str, Any]]:
    model, weights = ModelFolder(str(path)).captured(torch.float32)
    return model, model.model.layers[1].mlp.experts, weights


@pytest.mark.parametrize("change", ["norm", "parallel", "gate", "identity"])
def test_experts_that_do_something_else_are_refused_by_name(change: str, saved: Saved) -> None:
    model, experts, weights = private(saved("mixtral"))
    if change == "norm":
        experts.has_post_expert_norm = True
    elif change == "parallel":
        experts._is_expert_parallel = True
    elif change == "gate":
        experts.act_fn = torch.nn.Mish()
    else:  # LongCat: more rows of gates than experts that compute
        experts.gate_up_proj = torch.nn.Parameter(torch.empty(10, 96, 32, device="meta"))
    with pytest.raises(MoecError) as error:
        use_moec_experts(model, weights)
    assert error.value.code == "M206"
    assert "MixtralExperts" in error.value.what and error.value.where == "model.layers.1.mlp.experts"


def test_interleaved_and_transposed_experts_become_canonical(saved: Saved) -> None:
    _, _, stored = private(saved("gpt_oss"))
    model, experts, weights = private(saved("gpt_oss"))
    assert use_moec_experts(model, weights) == 2
    name = "model.layers.1.mlp.experts."
    old, new = stored[name + "gate_up_proj"].load(), weights[name + "gate_up_proj"].load()
    assert tuple(experts.gate_up_proj.shape) == tuple(new.shape) == (8, 48, 32)
    assert torch.equal(new[:, :24], old[:, :, 0::2].transpose(1, 2)) and torch.equal(
        new[:, 24:], old[:, :, 1::2].transpose(1, 2)
    )
    bias = stored[name + "gate_up_proj_bias"].load()
    assert torch.equal(weights[name + "gate_up_proj_bias"].load(), torch.cat([bias[:, 0::2], bias[:, 1::2]], 1))
    assert torch.equal(weights[name + "down_proj"].load(), stored[name + "down_proj"].load().transpose(1, 2))
    assert all(weights[name + matrix].relaid for matrix in ("gate_up_proj", "down_proj"))
    assert not any(part.relaid for w in stored.values() for part in w.expression()), "not those of the files"
    assert not weights[name + "gate_up_proj"].atomic, "experts should stay readable one by one"


def test_experts_that_are_canonical_already_stay_as_they_lie(saved: Saved) -> None:
    model, _, weights = private(saved("mixtral"))
    before = dict(weights)
    assert use_moec_experts(model, weights) == 2
    assert all(weights[name] is before[name] for name in before)
    assert not any(part.relaid for w in weights.values() for part in w.expression())
