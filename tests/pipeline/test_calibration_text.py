"""Which text to calibrate on: numbers that mean nothing are refused."""

from __future__ import annotations

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
