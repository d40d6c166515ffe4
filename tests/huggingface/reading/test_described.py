"""A model that only its config describes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moec.errors import MoecError
from moec.huggingface.reading.described import Described
from moec.huggingface.source import HuggingFaceSource
from tests import zoo
from tests.planning import configs, published


@pytest.mark.parametrize(("name", "layers"), [("llama", 1), ("gemma2", 2), ("deepseek_v3", 2), ("gpt_oss", 2)])
def test_it_is_cut_to_the_layers_that_hold_every_kind(name: str, layers: int, tmp_path: Path) -> None:
    """Windows that alternate and a dense layer before mixtures are kinds of their own."""
    found = Described(zoo.save(name, tmp_path / "model") + "/config.json")
    assert (found.layers, found.of) == (layers, 2)


def test_the_capture_is_that_of_the_model_with_weights(tmp_path: Path) -> None:
    folder = zoo.save("gpt_oss", tmp_path / "model")
    described = HuggingFaceSource.described(f"{folder}/config.json").capture()
    assert str(described.graph) == str(zoo.captured("gpt_oss").graph)


def test_weights_refuse_to_be_read(tmp_path: Path) -> None:
    found = Described(zoo.save("llama", tmp_path / "model"))
    weight = found.captured(torch.float32)[1]["model.norm.weight"]
    for read in (weight.load, found.loaded):
        with pytest.raises(MoecError, match="M205"):
            read()


def test_unrolled_loops_are_cut_and_every_layer_has_one_that_stands_for_it(tmp_path: Path) -> None:
    source = Described(str(configs.write(tmp_path, published.DEEPSEEK_V4 | {"hc_sinkhorn_iters": 20})))
    assert source.template.config.hc_sinkhorn_iters == 2  # 20 would be 20 times in the graph of every layer
    assert source.layers == 5 and len(source.stands_for) == 43
    assert source.stands_for[:5] == (0, 0, 2, 3, 4) and set(source.stands_for[3:]) == {3, 4}
