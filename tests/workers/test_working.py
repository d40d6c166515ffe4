"""Whoever is named does the pieces; a wrong name, and a missing package, are said before any work."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from moec.workers.place import Place
from moec.workers.pool import Here
from moec.workers.working import pool, working_on
from tests.cli.test_bad_input import assert_nothing_published, assert_three_lines, moec


def test_who_is_named_works_and_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Here()
    monkeypatch.setattr("moec.workers.on_ray.ray_pool", lambda place: nullcontext(other))
    before = pool()
    with pytest.raises(KeyError), working_on(Place(2)):
        assert pool() is other is not before
        with working_on(None):
            assert pool() is other
        raise KeyError
    assert pool() is before


@pytest.mark.parametrize("text", ["local:0", "ray:/x", "five"])
def test_a_wrong_name_is_refused(text: str, mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, err = moec(capsys, "compile", mixtral, "-o", tmp_path / "engine", "--workers", text)
    assert status == 2 and f"workers cannot be {text!r}" in err and "local:4" in err
    assert_three_lines(err, "M201")
    assert_nothing_published(tmp_path)


def test_without_ray_the_package_is_named(
    mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moec.workers.on_ray.find_spec", lambda name: None)
    status, err = moec(capsys, "compile", mixtral, "-o", tmp_path / "engine", "--workers", "local:2")
    assert status == 3 and "pip install 'moec[ray]'" in err
    assert_three_lines(err, "M301")
    assert_nothing_published(tmp_path)
