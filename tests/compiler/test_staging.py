"""An engine's folder appears whole or not at all, and takes no other folder's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.compiler.staging import check_out, staging
from moec.errors import MoecError


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "engine"
    with staging(out) as folder:
        (folder / "moec.json").write_text("{}")
        assert not out.exists()
    assert [p.name for p in out.iterdir()] == ["moec.json"]
    assert [p.name for p in out.parent.iterdir()] == ["engine"] and oct(out.stat().st_mode)[-3:] == "755"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error_and_what_was_there_stays(error: type[BaseException], tmp_path: Path) -> None:
    out = tmp_path / "engine"
    out.mkdir()
    (out / "moec.json").write_text("old")
    with pytest.raises(error), staging(out) as folder:
        (folder / "moec.json").write_text("new")
        raise error
    assert (out / "moec.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["engine"]


def test_an_engine_may_be_replaced_but_nothing_else(tmp_path: Path) -> None:
    empty, engine, other, file = (tmp_path / n for n in ("empty", "engine", "other", "file"))
    for folder in (empty, engine, other):
        folder.mkdir()
    (engine / "moec.json").write_text("{}")
    (other / "thesis.tex").write_text("years of work")
    file.write_text("text")
    for free in (tmp_path / "new", empty, engine):
        check_out(free)
    for taken in (other, file):
        with pytest.raises(MoecError) as caught:
            check_out(taken)
        assert caught.value.code == "M210"


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(MoecError) as caught, staging(tmp_path / "file" / "engine"):
        pass
    assert caught.value.code == "M210"
