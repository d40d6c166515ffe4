"""What the experts interface gives that moec must refuse, and the layouts that it brings into canonical form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.muse_spark.configuration_muse_spark import MuseSparkTextConfig
from transformers.models.muse_spark.modeling_muse_spark import MuseSparkTextModel

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.huggingface.operators.experts import use_moec_experts
from moec.huggingface.reading.folder import ModelFolder
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import MoeCall, moe_nodes
from tests.huggingface.conftest import Saved


def private(path: Any) -> tuple[Any, Any, dict[str, Any]]:
    model, weights = ModelFolder(str(path)).captured(torch.float32)
    return model, model.model.layers[1].mlp.experts, weights


@pytest.mark.parametrize("change", ["parallel", "gate", "identity"])
def test_experts_that_do_something_else_are_refused_by_name(change: str, saved: Saved) -> None:
    model, experts, weights = private(saved("mixtral"))
    if change == "parallel":
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


def test_experts_whose_outputs_are_normalised_are_one_operator_too() -> None:
    """Muse Spark: a norm behind each expert, before it is weighted; a token stands in a row for each of its experts."""
    torch.manual_seed(0)
    config = MuseSparkTextConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, moe_intermediate_size=24, moe_hidden_size=20, num_local_experts=6, num_experts_per_tok=3,
    )  # fmt: skip
    model = MuseSparkTextModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape) * (1.0 if "norm" in name else 0.3))
    captured = HuggingFaceSource.from_model(model, cache=False).capture()
    program, steps = Pipeline.parse("find-moe").all_optional().run(captured)
    (call,) = (MoeCall(node) for node in moe_nodes(program))
    assert call.experts_a_token == 3 and call.top_k == 1
    assert "other rows" in steps[0].misses[0]["reason"]
    ids = torch.randint(0, 96, (2, 19))
    found = EagerEngine(program)(input_ids=ids, attention_mask=torch.ones_like(ids))["last_hidden_state"]
    with torch.no_grad():
        want = model(input_ids=ids).last_hidden_state
        model.layers[0].mlp.experts.post_expert_norm.weight.mul_(-1.0)  # the mutant
        other = model(input_ids=ids).last_hidden_state
    assert (found - want).abs().max() <= 1e-4 * want.std() < 0.01 * (other - want).abs().max()
