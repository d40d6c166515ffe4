"""What a model's own card states is taken over where it stays true, and only where it is of the form that hubs read."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers.models.auto import modeling_auto

from moec.huggingface.stated import _HEADS, stated_of, task_of

CARD = """\
---
license: other
license_name: house
language: [en, de, 3]
base_model: org/base
metrics: [accuracy]
library_name: transformers
tags: [chat]
---
# A model
"""


def test_what_stays_true_is_kept(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    assert stated_of("MixtralForCausalLM", tmp_path) == {
        "license": "other",
        "license_name": "house",
        "language": ["en", "de"],
        "base_model": "org/base",
        "pipeline_tag": "text-generation",
    }
    (tmp_path / "README.md").write_text("---\npipeline_tag: translation\n---\n")
    assert stated_of("MixtralForCausalLM", tmp_path) == {"pipeline_tag": "translation"}


@pytest.mark.parametrize(
    "text", ["", "# No head", "---\n- a\n---\n", "---\n{: [\n---\n", "---\nlicense: {a: 1}\n---\n"]
)
def test_a_broken_card_states_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert stated_of("BertModel", tmp_path) == stated_of("BertModel", None) == {"pipeline_tag": "feature-extraction"}


def test_a_card_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.md").write_text(CARD)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").symlink_to(tmp_path / "elsewhere.md")
    assert "license" not in stated_of("BertModel", tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("MixtralForCausalLM", "text-generation"),
        ("BertForMaskedLM", "fill-mask"),
        ("BertForSequenceClassification", "text-classification"),
        ("BertForTokenClassification", "token-classification"),
        ("BertForQuestionAnswering", "question-answering"),
        ("ViTForImageClassification", "image-classification"),
        ("MixtralModel", "feature-extraction"),
    ],
)
def test_tasks(name: str, task: str) -> None:
    assert task_of(name) == task


def test_they_are_those_of_transformers() -> None:
    from transformers.modelcard import TASK_MAPPING

    assert all(
        TASK_MAPPING[task] == getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES") for task, head in _HEADS.items()
    )


def test_sentences_are_compared(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")
    assert stated_of("BertModel", tmp_path) == {"pipeline_tag": "sentence-similarity"}
