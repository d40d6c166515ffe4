"""Which class a folder is opened with, where config.json, its `auto_map` and the folder's own code say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moec import open_source
from moec.errors import MoecError
from tests import zoo
from tests.huggingface.conftest import Saved

CODE = """
import torch
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaModel):
    config_class = OwnConfig
class OwnForSequenceClassification(LlamaPreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.model = OwnModel(config)
        self.score = torch.nn.Linear(config.hidden_size, 1)
        self.post_init()
    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.score(self.model(input_ids, attention_mask).last_hidden_state[:, -1])}
"""
BARE = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
HEAD = {"AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification"}


def own_code(folder: Path, **changes: Any) -> str:
    (folder / "modeling_own.py").write_text(CODE)
    zoo.edit_config(folder, model_type="own", **changes)
    return str(folder)


def opened(folder: str) -> str:
    return type(open_source(folder, trust_remote_code=True).origin.template).__name__


def refused(folder: str, code: str, **opening: Any) -> MoecError:
    with pytest.raises(MoecError) as caught:
        open_source(folder, **opening)
    assert caught.value.code == code
    return caught.value


@pytest.mark.parametrize("auto_map", [{**BARE, **HEAD}, BARE], ids=["in auto_map", "only in its file"])
def test_a_reranker_of_its_own_code_is_opened_with_its_head(copied: Saved, auto_map: dict[str, str]) -> None:
    folder = own_code(copied("llama"), auto_map=auto_map, architectures=["OwnForSequenceClassification"])
    assert opened(folder) == "OwnForSequenceClassification"


def test_a_class_that_the_code_has_not_is_refused_and_the_way_out_works(copied: Saved) -> None:
    folder = own_code(copied("llama"), auto_map=BARE, architectures=["OwnForTokenClassification"])
    error = refused(folder, "M215", trust_remote_code=True)
    assert "OwnForTokenClassification" in error.what and '"architectures": ["OwnModel"]' in error.fix
    zoo.edit_config(folder, architectures=["OwnModel"])
    assert opened(folder) == "OwnModel"


def test_two_classes_and_no_architecture_are_not_guessed_between(copied: Saved) -> None:
    folder = own_code(copied("llama"), auto_map={**BARE, **HEAD}, architectures=None)
    assert "OwnForSequenceClassification" in refused(folder, "M215", trust_remote_code=True).what
    zoo.edit_config(folder, auto_map=BARE)
    assert opened(folder) == "OwnModel"


def test_code_that_stands_for_another_class_is_not_passed_over(copied: Saved) -> None:
    folder = copied("llama")
    zoo.edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_own.FasterLlama"})
    error = refused(str(folder), "M209")
    assert "FasterLlama" in error.what and "--trust-remote-code" in error.fix


def test_code_of_transformers_own_name_is_not_run_and_said(copied: Saved) -> None:
    folder = copied("llama")
    zoo.edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"})
    assert "the folder's own was not run" in open_source(str(folder)).account().declared


def test_an_architecture_of_another_model_is_refused(copied: Saved) -> None:
    folder = copied("llama")
    zoo.edit_config(folder, architectures=["MistralForCausalLM"])
    error = refused(str(folder), "M215")
    assert "MistralForCausalLM" in error.what and "'llama'" in error.what
    zoo.edit_config(folder, architectures=["LlamaForCausalLM"])
    assert open_source(str(folder)).account().model == "LlamaForCausalLM"


def test_an_architecture_that_is_no_model_is_refused(copied: Saved) -> None:
    folder = copied("llama")
    zoo.edit_config(folder, architectures=["LlamaConfig"])
    assert "no model" in refused(str(folder), "M215").what
