"""The two libraries are found, and old versions told from new ones, without loading them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from moec.backends.tensorrt.edition import EDITIONS, RTX, TENSORRT, Edition
from tests.backends.tensorrt.tiny import needs_rtx


@pytest.mark.parametrize(
    ("version", "known"),
    [("10.15.1", False), ("10.16.0", True), ("11.4.0.106", True), ("9.9", False), ("10.16.0a1", True)],
)
def test_old_versions_are_told(version: str, known: bool) -> None:
    assert TENSORRT.knows(version) is known


def test_what_is_not_installed() -> None:
    absent = Edition("nothing", "Nothing", "no_such_module", (), (1, 0), (), builds_on_gpu=False)
    assert absent.version() is None and absent.install == "pip install 'moec[nothing]'"


@needs_rtx
def test_the_version_is_known_without_loading_the_library() -> None:
    code = (
        "import sys; from moec.backends.tensorrt.edition import RTX; print(RTX.version()); assert 'tensorrt_rtx' "
        "not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == RTX.load().__version__ and RTX.knows(done.stdout)


@needs_rtx
def test_the_architectures_are_those_of_the_library() -> None:
    assert {f"SM{sm}" for sm in RTX.architectures} == set(RTX.load().ComputeCapability.__members__) - {
        "NONE",
        "CURRENT",
    }


def test_names() -> None:
    assert list(EDITIONS) == ["tensorrt", "tensorrt-rtx"]
