"""A missing package is said with the command that installs it."""

from __future__ import annotations

import sys

import pytest

from moec.errors import MoecError
from moec.layouts.gguf_package import require_package


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MoecError) as caught:
        require_package()
    assert caught.value.code == "M301" and "moec[gguf]" in caught.value.fix
