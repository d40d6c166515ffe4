"""The library is silent about its progress; who wants to hear of it derives from `Progress`."""

from __future__ import annotations

import pytest

from moec.progress import Progress


def test_the_library_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.stage("build")
    progress.advance(1, 2, "B", "weights")
    progress.done("3 files")
    assert tuple(capsys.readouterr()) == ("", "")
