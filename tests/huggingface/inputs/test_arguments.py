"""Every tensor that a forward takes is an input, or has a reason, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from moec.errors import MoecError
from moec.frontend.account import LeaveOut
from moec.huggingface.inputs.arguments import left_out_inputs, tensor_arguments
from moec.huggingface.inputs.signature import signature_of
from moec.huggingface.source import HuggingFaceSource
from tests import zoo
from tests.reported import CASES


class Annotated(nn.Module):
    def forward(
        self, input_ids: Tensor | None, bbox: torch.LongTensor | None = None, use_cache: bool = False, **kwargs: Any
    ) -> None: ...


class Bare(nn.Module):
    def forward(self, input_ids, bbox=None, output_attentions=None, *args) -> None: ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize("model", [Annotated(), Bare()])
def test_switches_are_no_tensors(model: nn.Module) -> None:
    assert tensor_arguments(model) == ["input_ids", "bbox"]


def skeleton(name: str, **config: Any) -> Any:
    with torch.device("meta"):
        return getattr(transformers, name)(getattr(transformers, name).config_class(**config))


SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


@pytest.mark.parametrize(
    ("name", "config", "unexplained"),
    [
        ("LongformerModel", SMALL, "global_attention_mask"),
        ("LukeModel", {**SMALL, "entity_vocab_size": 9}, "entity_ids"),
        ("XmodModel", SMALL, "lang_ids"),
    ],
)
def test_an_input_without_a_reason_is_refused_and_left_out_on_demand(
    name: str, config: dict[str, Any], unexplained: str
) -> None:
    model = skeleton(name, **config)
    kept = [i.name for i in signature_of(model).inputs]
    with pytest.raises(MoecError, match=unexplained) as caught:
        left_out_inputs(model, kept, LeaveOut())
    flag = caught.value.fix.split("--leave-out ")[1]
    left = left_out_inputs(model, kept, LeaveOut([flag]))
    assert caught.value.code == "M216" and unexplained in [x.name for x in left if x.asked]


@pytest.mark.parametrize("name", [*zoo.dense_configs(), *zoo.moe_configs()])
def test_models_of_text_and_images_need_nothing_more(name: str) -> None:
    with torch.device("meta"):
        config = {**zoo.dense_configs(), **zoo.moe_configs()}[name]
        model = getattr(transformers, config.architectures[0])(config)
    kept = [i.name for i in signature_of(model).inputs]
    left = left_out_inputs(model, kept, LeaveOut())
    assert {*kept, *(x.name for x in left)} >= set(tensor_arguments(model)) and not any(x.asked for x in left)


def test_boxes_are_an_input_and_samples_of_them_are_boxes() -> None:
    source = HuggingFaceSource.from_model(CASES["layoutlm"].model())
    bbox = next(i for i in source.inputs if i.name == "bbox")
    drawn = source.sample({"batch": 4, "sequence": 50})["bbox"]
    assert bbox.shape == ("batch", "sequence", 4) and drawn.max() < 1024
    assert (drawn[..., :2] <= drawn[..., 2:]).all() and (drawn[..., :2] < drawn[..., 2:]).any()


def test_without_boxes_only_on_demand() -> None:
    model = CASES["layoutlm"].model()
    source = HuggingFaceSource.from_model(model, leave_out=["bbox"])
    assert "bbox" not in [i.name for i in source.inputs]
    assert [x.name for x in source.account().left_out if x.asked] == ["bbox"]


def test_images_of_a_multimodal_are_refused_and_text_alone_compiles_on_demand() -> None:
    model = CASES["qwen3-vl-moe"].model()
    with pytest.raises(MoecError, match="pixel_values") as caught:
        HuggingFaceSource.from_model(model).account()
    flag = caught.value.fix.split("for text alone, --leave-out '")[1].split("'")[0]
    source = HuggingFaceSource.from_model(model, leave_out=[flag])
    reasons = {x.name: x.why for x in source.account().left_out}
    assert "you asked for it" in reasons["pixel_values"] and "left out" in reasons["image_grid_thw"]
    inputs = source.sample({"batch": 1, "sequence": 9, "past_sequence": 0})
    found, wanted = source.capture().run(**inputs)["logits"], source.reference()(**inputs)["logits"]
    assert (found - wanted).abs().max() <= 1e-4 * wanted.std()


def test_what_a_model_cannot_do_without_is_not_left_out() -> None:
    with pytest.raises(MoecError, match="does not run without input_ids"):
        HuggingFaceSource.from_model(zoo.build("bert"), leave_out=["input_*"])


def test_a_pattern_that_means_nothing_is_refused() -> None:
    with pytest.raises(MoecError, match="pixel_values"):
        HuggingFaceSource.from_model(zoo.build("bert"), leave_out=["pixel_values"]).account()
