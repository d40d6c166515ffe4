"""transformers' cache as flat tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from moec.errors import MoecError
from moec.huggingface.reading.cache import has_cache
from moec.huggingface.source import HuggingFaceSource
from moec.program.decoder_signature import past_names
from tests.zoo import build


def source(name: str, **options: Any) -> HuggingFaceSource:
    return HuggingFaceSource.from_model(build(name), **options)


def test_which_models_have_one() -> None:
    assert has_cache(build("llama")) and has_cache(build("gpt2"))
    assert not has_cache(build("bert")) and not has_cache(build("vit")) and not has_cache(build("llama").model)


def test_shapes_are_those_of_the_model() -> None:
    shapes = {i.name: i.shape for i in source("deepseek_v3").inputs}
    assert [shapes[n][1:] for n in past_names(1)] == [(1, "past_sequence", 16), (1, "past_sequence", 8)], (
        "MLA keeps the latent and the rotated key"
    )
    assert [{i.name: i.shape for i in source("llama").inputs}[n][1:] for n in past_names(1)] == [
        (2, "past_sequence", 8)
    ] * 2
    assert shapes["attention_mask"] == ("batch", "past_sequence + sequence") and "position_ids" not in shapes
    assert [i.name for i in source("llama", cache=False).inputs] == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss"])
def test_a_text_continued_through_flat_tensors_is_what_transformers_itself_computes(name: str) -> None:
    """Against the model's own call with its own cache class, windows and all."""
    model, engine = build(name), source(name).reference()
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    first = engine(input_ids=ids[:, :9])
    past = {k.replace("present", "past_key_values"): v for k, v in first.items() if k != "logits"}
    second = engine(input_ids=ids[:, 9:], **past)
    with torch.inference_mode():
        own = model(input_ids=ids[:, :9], use_cache=True)
        want = model(input_ids=ids[:, 9:], past_key_values=own.past_key_values).logits
        wrong = model(input_ids=ids[:, 9:]).logits
    assert torch.allclose(second["logits"], want, atol=1e-5) and not torch.allclose(second["logits"], wrong, atol=1e-2)


@pytest.mark.parametrize("name", ["Mamba", pytest.param("Qwen3Next", marks=pytest.mark.repeats)])
def test_other_memories_are_refused(name: str) -> None:
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 48}
    if name == "Qwen3Next":
        sizes |= {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
        }
        sizes |= {
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 8,
        }
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**sizes)).eval()
    if not has_cache(model):
        return  # then it is compiled without one
    with pytest.raises(MoecError) as caught:
        HuggingFaceSource.from_model(model).capture()
    assert caught.value.code == "M206"
    try:
        HuggingFaceSource.from_model(model, cache=False).capture()
    except MoecError as error:  # then it is no way out, and is not called one
        assert "pass --no-cache" not in caught.value.fix and error.fix == caught.value.fix
    else:
        assert "pass --no-cache" in caught.value.fix
