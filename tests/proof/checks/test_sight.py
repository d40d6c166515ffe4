"""Images have to change what a model says by more than an engine may differ."""

from __future__ import annotations

from moec.proof.checks.sight import TIMES, Sight


def test_images_that_change_too_little_are_no_proof() -> None:
    assert Sight(0.02, 0.001).ok and Sight.from_dict(Sight(0.02, 0.001).to_dict()) == Sight(0.02, 0.001)
    found = Sight(0.9 * TIMES * 0.001, 0.001).error()
    assert found is not None and found.code == "M104" and "pixel_values*" in found.fix
    assert not Sight(float("nan"), 0.001).ok and not Sight(0.02, 0.001 * TIMES).figures()[0].ok
