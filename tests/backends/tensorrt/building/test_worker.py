"""Builds run in a process of their own: whatever happens there is an error here, and nothing more."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.backends.tensorrt.building.worker import call
from moec.backends.tensorrt.edition import TENSORRT
from moec.backends.tensorrt.gpu import find_gpu
from moec.errors import MoecError
from tests.backends.tensorrt.tiny import needs_rtx, request


@needs_rtx
def test_a_plan_comes_back(tmp_path: Path) -> None:
    assert call(request(tmp_path))["layers"]["MATRIX_MULTIPLY"] == 1
    assert (tmp_path / "model.plan").exists()


@needs_rtx
def test_an_error_there_is_the_same_error_here(tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="no optimization profile") as caught:
        call(request(tmp_path, profiles=[]))
    assert caught.value.code == "M208"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.abort()", "SIGABRT"),
        ("raise RuntimeError('no such thing')", "status 1: RuntimeError: no such thing"),
        ("pass", "status 0"),
    ],
    ids=["crash", "abort", "exception", "no answer"],
)
def test_a_crash_is_an_error(tmp_path: Path, code: str, reason: str) -> None:
    with pytest.raises(MoecError, match=reason) as caught:
        call(request(tmp_path), program=("-c", code))
    assert caught.value.code == "M303" and caught.value.exit_code == 3


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
def test_the_library_is_not_touched_without_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="builds on an NVIDIA GPU") as caught:
        call(request(tmp_path, edition=TENSORRT.backend))
    assert caught.value.code == "M302"


def test_the_process_does_not_wait_for_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, moec.backends.tensorrt.building.worker, moec.backends.tensorrt.building.builder, "
        "moec.backends.tensorrt.edition, moec.backends.tensorrt.gpu"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], capture_output=True
        ).returncode
        == 0
    )
