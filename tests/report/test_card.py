"""The model card of an engine: hubs read its head, and it says what the manifest says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from moec import api
from moec.report.card import model_card
from moec.report.report import Report
from tests.report.test_report import make


@pytest.fixture(scope="module")
def report(mixtral_engine: Path) -> Report:
    return api.read_report(mixtral_engine)


def head(report: Report) -> dict[str, object]:
    """The card's metadata, as the hub's own client reads them."""
    return dict(ModelCard(model_card(report)).data.to_dict())


def stating(report: Report, **stated: object) -> Report:
    return replace(report, account={**report.account, "stated": {**report.account["stated"], **stated}})


def test_the_card_lies_in_the_folder_and_in_the_manifest(mixtral_engine: Path, report: Report) -> None:
    card = ModelCard.load(mixtral_engine / "README.md")
    assert card.data.to_dict() == {
        "library_name": "onnxruntime",
        "pipeline_tag": "text-generation",
        "tags": ["moec", "onnxruntime", "mixture-of-experts", "onnx"],
    }
    assert "README.md" in [artefact.name for artefact in report.artefacts]
    for said in ("Equal to the untouched model", "16/16 experts", "moec run engine/", "onnxruntime_genai", "fuse-moe"):
        assert said in card.text, said


def test_it_says_nothing_of_this_machine_and_is_the_same_again(report: Report, tmp_path: Path) -> None:
    here = replace(report, source=str(tmp_path / "models" / "mixtral"))
    assert str(tmp_path) not in model_card(here) and "# mixtral for onnxruntime" in model_card(here)
    assert model_card(here) == model_card(Report.from_json(here.to_json()))


def test_what_the_source_states_is_taken_over(report: Report) -> None:
    said = head(stating(report, license="mit", language=["en"], base_model="org/base"))
    assert (said["license"], said["language"], said["base_model"]) == ("mit", ["en"], "org/base")
    assert "base_model_relation" not in said and "licence: mit" in model_card(stating(report, license="mit"))
    assert "states no licence" in model_card(report)


def test_a_model_of_a_hub_is_the_base(report: Report) -> None:
    steps = ({"name": "quantize(bits=4)", "contract": "approximate", "rewrites": 3, "misses": []},)
    older = stating(report, base_model="org/older")
    said = head(replace(older, source="org/model", steps=steps, account={**older.account, "hub": "org/model"}))
    assert (said["base_model"], said["base_model_relation"]) == ("org/model", "quantized")


def test_a_folder_that_is_named_like_a_hub_id_is_no_base(report: Report) -> None:
    steps = ({"name": "quantize(bits=4)", "contract": "approximate", "rewrites": 3, "misses": []},)
    local = replace(report, source="models/mixtral", steps=steps)
    assert report.account["hub"] == "" and not {"base_model", "base_model_relation"} & set(head(local))
    tuned = head(stating(local, base_model="org/base"))  # the engine is of the fine-tune, not of its base
    assert tuned["base_model"] == "org/base" and "base_model_relation" not in tuned


def test_an_engine_that_did_not_run_where_it_is_for_is_not_called_proven_there(report: Report) -> None:
    settings = {**report.settings, "target": "tensorrt", "build": False, "layout": "plain"}
    text = model_card(replace(report, settings=settings))
    assert "moec build engine/" in text and "not built yet" in text


def test_names_cannot_write_the_card(report: Report) -> None:
    text = model_card(stating(replace(report, source="m\n## Free\n"), license="mit\n---\n# Free"))
    assert "\n## Free" not in text and "\n# Free" not in text.partition("\n---\n\n")[2]
    assert head(stating(report, license="a: b\n---"))["license"] == "a: b\n---"


def test_a_report_without_an_account_has_a_card() -> None:
    assert "# tiny for onnxruntime" in model_card(make()) and json.loads(make().to_json())["account"] == {}
