"""Which text to calibrate on: numbers that mean nothing are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.pipeline.calibration_text import CalibrationText


def test_settings_that_mean_nothing_are_refused() -> None:
    for make in (
        lambda: CalibrationText("x", -1),
        lambda: CalibrationText("x", 0, 1),
        lambda: CalibrationText.of(None, 5),
    ):
        with pytest.raises(MoecError) as caught:
            make()
        assert caught.value.code == "M201"
    assert CalibrationText.of(None, None) is None
    assert CalibrationText.of("x", None) == CalibrationText("x")


def test_texts_have_names_and_a_file_may_look_like_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    several = CalibrationText("code=a.txt,law=more/b.txt")
    assert several.parts == {"code": "a.txt", "law": "more/b.txt"} and several.files == ("a.txt", "more/b.txt")
    for one in ("a.txt", "a,b.txt", "more/a=b,c.txt"):
        assert CalibrationText(one).parts == {} and CalibrationText(one).files == (one,)
    with pytest.raises(MoecError, match="two texts are called code"):
        CalibrationText("code=a.txt,code=b.txt")
    (tmp_path / "a=b.txt").write_text("x")
    assert CalibrationText("a=b.txt").parts == {}
