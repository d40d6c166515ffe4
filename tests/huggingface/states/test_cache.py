"""transformers' cache as flat tensors."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicLayer
from transformers.models.llama.modeling_llama import LlamaAttention

from moec.errors import MoecError
from moec.huggingface.source import HuggingFaceSource
from moec.huggingface.states.cache import cached_call, has_cache
from moec.program.decoder_signature import cache_inputs, is_past, past_names
from tests import whole_zoo
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


def test_a_state_that_a_model_lets_go_is_not_carried_on_as_it_was() -> None:
    model, own = build("llama"), source("llama")

    @wraps(model.forward)
    def forward(**given: Any) -> Any:
        output = model.forward(**given)
        given["past_key_values"].layers[1].values = None
        return output

    sample = own.sample({"batch": 1, "sequence": 2, "past_sequence": 3})
    for captured in (True, False):
        with pytest.raises(MoecError, match="no longer holds its value") as error, torch.no_grad():
            cached_call(forward, cache_inputs(own.inputs), captured)(**sample)
        assert error.value.code == "M206" and error.value.where == past_names(1)[1]


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss", "lfm2"])
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


def test_a_layer_of_a_kind_that_nobody_knows_is_refused_with_a_way_out_that_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = LlamaAttention.forward

    class Layer(DynamicLayer):  # type: ignore[misc]
        pass

    def with_its_own(self: Any, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None and self.layer_idx == 1:
            past_key_values.layers[1] = Layer()
        return forward(self, *args, past_key_values=past_key_values, **kwargs)

    monkeypatch.setattr(LlamaAttention, "forward", with_its_own)
    with pytest.raises(MoecError) as caught:
        source("llama").capture()
    assert caught.value.code == "M206" and "layer of its own (Layer)" in caught.value.what
    assert caught.value.where == "layer 1" and "pass --no-cache, with which it was captured" in caught.value.fix


def test_a_state_in_a_module_under_a_name_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    init, forward = LlamaAttention.__init__, LlamaAttention.forward

    def without(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.memory = None

    def keeping(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        self.memory = hidden_states[:, -1]
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(LlamaAttention, "__init__", without)
    monkeypatch.setattr(LlamaAttention, "forward", keeping)
    with pytest.raises(MoecError, match="keeps a state of earlier calls in its own modules") as caught:
        source("llama").inputs  # noqa: B018
    assert caught.value.code == "M206" and caught.value.where == "model.layers.0.self_attn.memory"


def test_what_a_model_keeps_only_where_no_one_tells_it_positions_is_no_state() -> None:
    """Qwen3-Omni's offset of positions; moec's calls tell them."""
    source = HuggingFaceSource.from_model(whole_zoo.build("qwen3_omni_moe_thinker"), leave_out=("pixel_values*",))
    assert any(map(is_past, (i.name for i in source.inputs)))
