"""Models that are in memory already: captured from their tensors, never changed."""

from __future__ import annotations

import pytest
import torch

from moec.huggingface.reading.loaded import Loaded
from moec.huggingface.source import HuggingFaceSource
from tests import zoo
from tests.huggingface.test_source import TOLERANCE, difference, relative


@pytest.mark.parametrize("name", ["gpt_oss", "llama4", "gpt2"])
def test_model_in_memory(name: str) -> None:
    model = zoo.build(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    source = HuggingFaceSource.from_model(model, cache=False)
    program = source.capture()
    assert difference(program, source) <= TOLERANCE
    inputs = source.sample({"batch": 2, "sequence": 5})
    with torch.no_grad():
        assert relative(program.run(**inputs)["logits"], model(**inputs).logits) <= TOLERANCE
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the user's model was changed"
    assert "forward" not in vars(model)


def test_tensors_are_shared_not_copied() -> None:
    model = zoo.build("llama")
    _, weights = Loaded(model).captured(torch.float32)
    reference = Loaded(model).loaded()
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    assert weights["model.embed_tokens.weight"].load().data_ptr() == embedding.data_ptr()
    assert weights["lm_head.weight"] is weights["model.embed_tokens.weight"]
    assert reference.get_input_embeddings().weight is embedding and reference is not model


def test_half_precision_models_are_compared_in_float32() -> None:
    model = zoo.build("mixtral").to(torch.bfloat16)
    source = HuggingFaceSource.from_model(model)
    assert difference(source.capture(), source) <= TOLERANCE
    assert next(model.parameters()).dtype == torch.bfloat16
