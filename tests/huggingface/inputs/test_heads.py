"""Classifiers whose heads torch.export would not take, and what they ask of texts."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from moec.huggingface.inputs.heads import PoolAtEnd, pools_at_end, takes_one_text
from moec.huggingface.source import HuggingFaceSource
from tests import zoo
from tests.reported import CASES

T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
      "eos_token_id": 1, "decoder_start_token_id": 0, "num_labels": 3}  # fmt: skip


def t5() -> Any:
    model = transformers.T5ForSequenceClassification(transformers.T5Config(**T5))
    zoo.randomize(model, 0)
    return model.eval()


def differences(source: HuggingFaceSource, *spoil: float) -> list[float]:
    """max |d| / std at a batch and length unlike the capture's, of logits that are so much too large."""
    program, reference = source.capture(), source.reference()
    inputs = source.sample({"batch": 4, "sequence": 17}, seed=3)
    found, wanted = program.run(**inputs)["logits"], reference(**inputs)["logits"]
    return [float((found + much - wanted).abs().max() / wanted.std()) for much in spoil]


def test_classifiers_at_the_end_token() -> None:
    source = HuggingFaceSource.from_model(t5())
    assert pools_at_end(source.origin.template) and [i.name for i in source.inputs] == ["input_ids", "attention_mask"]
    right, wrong = differences(source, 0.0, 0.01)
    assert right <= 1e-4 < wrong


def test_samples_end_with_the_end_token_and_have_it_once() -> None:
    source = HuggingFaceSource.from_model(CASES["bart-mnli"].model())
    ids = source.sample({"batch": 5, "sequence": 200})["input_ids"]
    assert (ids[:, -1] == 2).all() and ((ids == 2).sum(1) == 1).all()
    assert {"decoder_input_ids"} <= {x.name for x in source.account().left_out}
    assert any("end token" in note for note in source.account().notes)


def test_the_last_end_of_each_row_is_taken_and_a_row_without_one_is_nan() -> None:
    hidden = torch.randn(3, 5, 2)
    mask = torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    with PoolAtEnd():
        found = hidden[mask, :]
        assert torch.unique_consecutive(mask.sum(1)).numel() == 1
        assert hidden[mask].shape == (3, 2)  # any other index stays what it is
    assert torch.equal(found[:2], torch.stack([hidden[0, 3], hidden[1, 0]])) and found[2].isnan().all()


def test_without_padding_a_reranker_takes_one_text() -> None:
    model = CASES["qwen3-reranker"].model()
    source = HuggingFaceSource.from_model(model)
    assert takes_one_text(model) and [i.shape for i in source.inputs] == [(1, "sequence")] * 2
    assert any("pad_token_id" in note for note in source.account().notes)
    inputs = source.sample({"sequence": 17})
    found, wanted = source.capture().run(**inputs)["logits"], source.reference()(**inputs)["logits"]
    assert abs(float(found - wanted)) <= 1e-5 * max(1.0, abs(float(wanted)))
    model.config.pad_token_id = 0  # the way out that the note names
    assert HuggingFaceSource.from_model(model).inputs[0].shape == ("batch", "sequence")
