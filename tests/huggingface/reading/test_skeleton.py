"""Models without weights."""

from __future__ import annotations

import torch
import transformers

from moec.huggingface.reading.skeleton import build, take_buffers
from moec.weights.lazy import Weight
from tests import zoo


def test_parameters_are_on_meta_and_computed_buffers_are_real() -> None:
    config = zoo.moe_configs()["gpt_oss"]
    model, real = build(transformers.GptOssForCausalLM, config, torch.float32), zoo.build("gpt_oss")
    assert all(p.device.type == "meta" for p in model.parameters())
    wanted = dict(real.named_buffers())
    assert wanted and all(torch.equal(b, wanted[name]) for name, b in model.named_buffers())


def test_buffers_and_plain_tensors_become_weights() -> None:
    model = torch.nn.Module()
    model.inner = torch.nn.Linear(2, 2, device="meta")
    model.inner.register_buffer("table", torch.arange(3.0))
    model.inner.plain = torch.ones(2)  # type: ignore[assignment]
    weights: dict[str, Weight] = {}
    take_buffers(model, weights)
    assert {k: w.load().tolist() for k, w in weights.items()} == {
        "inner.table": [0.0, 1.0, 2.0],
        "inner.plain": [1.0, 1.0],
    }
    assert all(b.device.type == "meta" for b in model.buffers()) and len(list(model.buffers())) == 2


def test_nothing_is_allocated_for_a_model_that_does_not_fit() -> None:
    config = transformers.MixtralConfig(num_hidden_layers=80)  # 116 billion parameters
    model = build(transformers.MixtralForCausalLM, config, torch.float32)
    assert sum(p.numel() for p in model.parameters()) > 1e11


def test_modules_register_parameters_normally_afterwards() -> None:
    build(transformers.LlamaForCausalLM, zoo.dense_configs()["llama"], torch.float32)
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


def test_a_layer_whose_experts_the_system_would_not_even_reserve_is_built() -> None:
    sizes = {"hidden_size": 7168, "moe_intermediate_size": 2048, "n_routed_experts": 4096, "first_k_dense_replace": 0}
    config = transformers.DeepseekV3Config(num_hidden_layers=1, **sizes)
    model = build(transformers.DeepseekV3ForCausalLM, config, torch.float32)
    assert model.model.layers[0].mlp.experts.gate_up_proj.numel() == 4096 * 4096 * 7168  # 481 GB
    assert not model.model.rotary_emb.inv_freq.is_meta
