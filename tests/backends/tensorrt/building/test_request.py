"""Settings of the builder: from the target's options to what the process that builds is asked, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.backends.tensorrt.building.request import refused_settings, request_of, settings, timing_cache
from moec.backends.tensorrt.edition import RTX, TENSORRT
from moec.backends.tensorrt.gpu import Gpu
from moec.targets.target import Target

H200 = Gpu("NVIDIA H200", 90, 141 << 30, 13000)
DESCRIBED = {"profiles": [], "native": [], "kernels": []}


def test_what_is_not_said_is_the_default() -> None:
    assert settings(Target.parse("tensorrt:sm90")) == {
        "refit": "no", "weight_streaming": "no", "verbosity": "layers", "timing_cache": "keep",
    }  # fmt: skip


def test_the_request_has_them_and_the_timings_of_this_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target = Target.parse("tensorrt:sm90,refit=yes,weight_streaming=yes,verbosity=detailed,workspace=3")
    found = request_of(TENSORRT, tmp_path / "m.onnx", tmp_path / "m.plan", target, DESCRIBED, H200)
    assert found["settings"]["refit"] == "yes" and found["workspace_bytes"] == 3 << 20 and found["architectures"] == []
    assert found["timing_cache"] == timing_cache(TENSORRT, H200) and "sm90-13000" in found["timing_cache"]
    without = Target.parse("tensorrt:sm90,timing_cache=none")
    assert request_of(TENSORRT, tmp_path, tmp_path, without, DESCRIBED, H200)["timing_cache"] == ""
    rtx = request_of(RTX, tmp_path, tmp_path, Target.parse("tensorrt-rtx:sm86,sm120"), DESCRIBED, None)
    assert rtx["architectures"] == [86, 120] and rtx["timing_cache"] == ""


def test_what_a_library_cannot_build_is_refused() -> None:
    refit, cache = Target.parse("tensorrt-rtx:refit=yes"), Target.parse("tensorrt-rtx:timing_cache=keep")
    assert "on a GPU only" in refused_settings(refit, RTX, None)[0].reason
    assert refused_settings(refit, RTX, H200) == [] and "timing cache" in refused_settings(cache, RTX, H200)[0].reason
    assert refused_settings(Target.parse("tensorrt:refit=yes,timing_cache=keep"), TENSORRT, None) == []
