"""Verified is only what ran on what it is for."""

from __future__ import annotations

import pytest

from moec.errors import MoecError
from moec.proof.where_run import WhereRun


@pytest.mark.parametrize(
    ("target", "ran_on", "verdict"),
    [
        ("onnxruntime:threads=2", "onnxruntime:cpu", "verified"),
        ("tensorrt:sm90", "tensorrt:sm90", "verified"),
        ("tensorrt:sm90,precision=fp16", "onnxruntime:cpu", "proven on the CPU, not yet run on tensorrt:sm90"),
        ("onnxruntime:cuda", "onnxruntime:cpu", "proven on the CPU, not yet run on onnxruntime:cuda"),
        ("tensorrt-rtx:sm86", "onnxruntime:cuda", "proven on cuda, not yet run on tensorrt-rtx:sm86"),
        ("onnxruntime:cuda", "", "proven on hardware that is not named, not yet run on onnxruntime:cuda"),
        ("", "", "proven on hardware that is not named, not yet run on what it is for"),
    ],
)
def test_verified_is_only_what_ran(target: str, ran_on: str, verdict: str) -> None:
    place = WhereRun(target, ran_on)
    assert place.verdict == verdict and place.on_target is (verdict == "verified") is (place.elsewhere == "")
    if place.on_target:
        place.require()
        return
    with pytest.raises(MoecError, match=verdict) as caught:
        place.require()
    assert (caught.value.code, caught.value.exit_code) == ("M113", 1)
