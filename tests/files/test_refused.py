"""What the system refused is said with the file that it is about."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import moec
from moec.files.refused import refused


@pytest.mark.parametrize(
    ("error", "code", "where"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "/a/template.j2"), "M218", "/a/template.j2"),
        (PermissionError(errno.EACCES, "Permission denied", "/work/.x/model.onnx"), "M210", "/work/engine"),
        (OSError(errno.ENOSPC, "No space left"), "M210", "/work/engine"),
        (OSError(errno.EFBIG, "File too large", "/a/model.onnx"), "M210", "/work/engine"),
    ],
)
def test_codes(error: OSError, code: str, where: str) -> None:
    found = refused(error, Path("/work/.x"), Path("/work/engine"))
    assert found is not None and (found.code, found.where) == (code, where) and str(error.strerror) in found.what


def test_a_file_of_moecs_own_is_told_from_the_users() -> None:
    own = str(Path(moec.__file__).parent / "report" / "templates" / "report.html.j2")
    found = refused(FileNotFoundError(errno.ENOENT, "No such file", own), Path("/work/.x"))
    assert found is not None and "install moec again" in found.fix


def test_nothing_is_said_of_what_names_no_file() -> None:
    assert refused(OSError("the library says no")) is None
