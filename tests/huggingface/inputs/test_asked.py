"""The inputs that a model is asked for: its own, without some, with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.compiler.open import open_source
from moec.errors import MoecError
from tests import whole_zoo
from tests.seen_and_heard import SEEN


def test_a_sound_without_its_processor_is_refused_and_given_by_hand(tmp_path: Path) -> None:
    SEEN["hubert"].save(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(MoecError, match="nothing in the folder says of what shape") as caught:
        open_source(str(tmp_path))
    assert caught.value.code == "M206" and "preprocessor_config.json" in caught.value.fix
    flag = caught.value.fix.split("--input ")[1].replace("DIMS", "batch,samples")
    source = open_source(str(tmp_path), inputs=[flag])
    assert [(i.name, i.shape) for i in source.inputs] == [("input_values", ("batch", "samples"))]


def test_why_a_processor_was_not_run_is_said(tmp_path: Path) -> None:
    SEEN["rt-detr"].save(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuchProcessor"}')
    notes = open_source(str(tmp_path)).account().notes
    assert any("processor was not run" in note for note in notes)


def test_features_that_hang_on_what_nobody_said_are_refused_by_its_name() -> None:
    source = open_source(whole_zoo.build("ernie4_5_vl_moe"), leave_out=["input_ids"])
    with pytest.raises(MoecError, match="may hang on image_grid_thw, of which nothing is known here") as caught:
        source.capture()
    assert caught.value.code == "M207" and "--input 'image_grid_thw=" in caught.value.fix
