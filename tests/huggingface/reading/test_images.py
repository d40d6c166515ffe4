"""Sizes of pixels where only files say them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.huggingface.reading.images import image_input, size_of
from tests import zoo
from tests.reported import CASES


def test_the_config_comes_first_then_the_preprocessors_file_else_any_size(tmp_path: Path) -> None:
    detector, vit = CASES["detr"].model(), zoo.build("vit")
    assert image_input(detector, tmp_path)["pixel_values"][2] == ("batch", 3, "height", "width")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 48, "width": 64}}))
    assert image_input(detector, tmp_path)["pixel_values"][2] == ("batch", 3, 48, 64)
    assert size_of(vit, tmp_path) == vit.config.image_size


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(MoecError) as caught:
        image_input(CASES["detr"].model(), tmp_path)
    assert caught.value.code == "M204"
