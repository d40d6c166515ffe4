"""The processor beside a checkpoint is run, if it is one of transformers' own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers as T

from moec.errors import MoecError
from moec.huggingface.inputs.processor import prepared

pytest.importorskip("PIL", reason="processors of images draw with Pillow")


def test_two_runs_differ_where_sizes_may(tmp_path: Path) -> None:
    T.DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path)
    made, why = prepared(tmp_path)
    assert made is not None and not why and made.by == "DetrImageProcessorPil"
    shapes = [{name: tuple(value.shape) for name, value in run.items()} for run in made.runs]
    assert shapes[0] == {"pixel_values": (2, 3, 64, 85), "pixel_mask": (2, 64, 85)}
    assert shapes[1] == {"pixel_values": (3, 3, 91, 64), "pixel_mask": (3, 91, 64)}


def test_sounds_are_padded_to_the_extractors_own_length_where_it_has_one(tmp_path: Path) -> None:
    T.WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(tmp_path / "fixed")
    T.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "any")
    fixed, free = prepared(tmp_path / "fixed")[0], prepared(tmp_path / "any")[0]
    assert fixed is not None and [r["input_features"].shape[-1] for r in fixed.runs] == [200, 200]
    assert (
        free is not None and free.rate == 16_000 and [r["input_values"].shape[-1] for r in free.runs] == [6400, 11200]
    )


def test_a_folder_without_a_processor_has_none_and_no_reason(tmp_path: Path) -> None:
    assert prepared(tmp_path) == (None, "")


def test_the_folders_own_code_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("raise SystemExit('it was run')\n")
    said = {"auto_map": {"AutoImageProcessor": "theirs.Eye"}, "image_processor_type": "Eye"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    made, why = prepared(tmp_path)
    assert made is None and "custom code" in why


def test_a_broken_file_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    made, why = prepared(tmp_path)
    assert made is None and why


def test_a_file_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "model/preprocessor_config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(MoecError) as caught:
        prepared(tmp_path / "model")
    assert caught.value.code == "M204"
