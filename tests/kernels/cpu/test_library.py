from __future__ import annotations

from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.kernels.cpu import library


def test_a_compiled_library_is_found(cpu_kernels: Path) -> None:
    assert library.library() == library.require_library() == cpu_kernels.resolve()
    assert library.why_not() == ""


def test_where_there_is_none_it_is_said_and_what_makes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(library.PLACE, str(tmp_path / "none.so"))
    assert library.library() is None
    assert "not compiled" in library.why_not()
    with pytest.raises(MoecError) as refused:
        library.require_library()
    assert (refused.value.code, refused.value.fix) == ("M301", library.way_out())
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler" in library.why_not()
    assert "install g++" in library.way_out()
