"""Which models have two parts, and what each takes."""

from __future__ import annotations

from typing import Any

import pytest

from moec.errors import MoecError
from moec.huggingface.source import HuggingFaceSource
from moec.huggingface.states.encoder_decoder import has_parts
from moec.program.conditions import Condition
from tests import zoo
from tests.encoder_decoders import build


def inputs(name: str, part: str) -> dict[str, tuple[int | str, ...]]:
    return {i.name: i.shape for i in HuggingFaceSource.from_model(build(name), part=part).inputs}


def test_which_models_have_them() -> None:
    assert has_parts(build("bart")) and has_parts(build("t5")) and has_parts(build("whisper"))
    assert not has_parts(build("bart").model) and not has_parts(zoo.build("llama"))


@pytest.mark.parametrize(("name", "width"), [("bart", 8), ("t5", 6)])
def test_of_tokens(name: str, width: int) -> None:
    assert inputs(name, "encoder") == {"input_ids": ("batch", "sequence"), "attention_mask": ("batch", "sequence")}
    found = inputs(name, "decoder")
    assert found.pop("encoder_attention_mask") == ("batch", "encoder_sequence")
    assert found == {
        "input_ids": ("batch", "sequence"),
        "encoder_hidden_states": ("batch", "encoder_sequence", 16),
        **{f"past_key_values.0.decoder.{kind}": ("batch", 2, "past_sequence", width) for kind in ("key", "value")},
        **{
            f"past_key_values.0.encoder.{kind}": ("batch", 2, "past_encoder_sequence", width)
            for kind in ("key", "value")
        },
    }


def test_of_sound() -> None:
    assert inputs("whisper", "encoder") == {"input_features": ("batch", 8, 40)}
    assert "encoder_attention_mask" not in inputs("whisper", "decoder")
    whole = HuggingFaceSource.from_model(build("whisper"))
    assert [i.name for i in whole.inputs] == ["input_features", "decoder_input_ids"]


@pytest.mark.parametrize("name", ["speech_to_text", "seamless"])
def test_of_sound_of_any_length(name: str) -> None:
    assert inputs(name, "encoder") == {"input_features": ("batch", "sequence", 10)}
    whole = HuggingFaceSource.from_model(build(name))
    assert [i.name for i in whole.inputs] == ["input_features", "decoder_input_ids"]
    said = {p: part.account().lines()[1:] for p, part in whole.parts().items()}
    assert said == dict.fromkeys(("encoder", "decoder"), whole.account().lines()[1:]), "it is told once"


def test_sound_of_a_width_that_no_config_says_is_refused_with_a_way_out() -> None:
    model = build("speech_to_text")
    model.config.input_feat_per_channel = 0
    with pytest.raises(MoecError, match="nothing in the folder says of what shape") as error:
        HuggingFaceSource.from_model(model).inputs  # noqa: B018
    assert error.value.code == "M206" and "--input input_features=" in error.value.fix


@pytest.mark.repeats
def test_a_decoder_that_does_not_run_with_caches_is_refused_with_a_way_out_that_was_tried() -> None:
    model = build("bart")
    decoder = model.model.decoder

    def forward(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None:
            raise ValueError("no caches here")
        return type(decoder).forward(decoder, *args, **kwargs)

    model.model.decoder.forward = forward
    with pytest.raises(MoecError) as error:
        _ = HuggingFaceSource.from_model(model, part="decoder").inputs
    assert error.value.code in ("M206", "M207") and error.value.__cause__ is not None


def test_a_part_that_fails_in_every_way_is_refused_after_one_more_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out of a part is the whole model without a cache; where that is refused too, nothing else is tried."""
    model, tried, own = build("bart"), list[str](), HuggingFaceSource.__init__

    def counted(self: HuggingFaceSource, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs)
        tried.append(self.part)
        assert len(tried) < 6, "it goes on and on"

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("no day for this")

    model.model.decoder.forward = fails
    monkeypatch.setattr(HuggingFaceSource, "__init__", counted)
    with pytest.raises(MoecError, match="with --no-cache, ") as error:
        HuggingFaceSource.from_model(model, part="decoder").capture()
    assert error.value.code in ("M206", "M207") and tried == ["decoder", ""]


@pytest.mark.repeats
def test_a_decoder_without_a_mask_takes_no_more_held_states_than_states() -> None:
    program = HuggingFaceSource.from_model(build("whisper"), part="decoder").capture()
    assert program.conditions == (Condition("past_encoder_sequence <= encoder_sequence"),)
    assert all(e["past_encoder_sequence"] <= e["encoder_sequence"] for e in program.edges)
