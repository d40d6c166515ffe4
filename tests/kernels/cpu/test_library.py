from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.kernels.cpu import building, library


def test_a_compiled_library_is_found(cpu_kernels: Path) -> None:
    assert library.library() == library.require_library() == cpu_kernels.resolve()
    assert library.why_not() == ""


def test_where_there_is_none_it_is_said_and_what_makes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(library.PLACE, raising=False)
    monkeypatch.setattr(library, "SOURCES", tmp_path)
    assert library.library() is None
    assert "not compiled" in library.why_not()
    with pytest.raises(MoecError) as refused:
        library.require_library()
    assert (refused.value.code, refused.value.fix) == ("M301", library.way_out())
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler" in library.why_not()
    assert "install g++" in library.way_out()


def test_a_named_file_that_is_not_there_is_said_and_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpu_kernels_file: Path
) -> None:
    monkeypatch.setattr(library, "SOURCES", cpu_kernels_file.parent)
    monkeypatch.setattr(library, "LIBRARY", cpu_kernels_file.name)
    monkeypatch.setenv(library.PLACE, str(tmp_path / "none.so"))
    with pytest.raises(MoecError, match=r"MOEC_CPU_KERNELS names .*none\.so, and there is no such file") as refused:
        library.require_library()
    assert refused.value.code == "M301" and refused.value.fix.startswith("unset MOEC_CPU_KERNELS, or ")
    assert refused.value.fix.endswith("--out $MOEC_CPU_KERNELS")
    monkeypatch.delenv(library.PLACE)
    assert library.require_library() == cpu_kernels_file.resolve()  # the way out


def test_a_library_of_other_sources_is_said_and_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpu_kernels: Path
) -> None:
    stale = tmp_path / "stale.so"
    stale.write_bytes(cpu_kernels.read_bytes().replace(b"moec.cpu sources ", b"moec.cpu sources 0"))
    monkeypatch.setenv(library.PLACE, str(stale))
    with pytest.raises(MoecError, match="compiled from other sources") as refused:
        library.require_library()
    assert (refused.value.code, refused.value.fix) == ("M301", library.way_out())


def test_each_source_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = building.stamp()
    copy = Path(shutil.copytree(building.SOURCES, tmp_path / "sources", ignore=shutil.ignore_patterns("*.so")))
    monkeypatch.setattr(building, "SOURCES", copy)
    assert building.stamp() == before
    for path in (*copy.glob("*.cpp"), *copy.glob("*.h")):
        text = path.read_text()
        path.write_text(text + "\n")
        assert building.stamp() != before, path
        path.write_text(text)
