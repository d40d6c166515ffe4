"""A cache that is never wrong: broken entries go, nothing fails with it, and it keeps to its size."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moec.files import kept

KEY = [f"{i:064x}" for i in range(4)]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_what_was_kept_is_read(place: Path) -> None:
    assert kept.read(KEY[0]) is None
    kept.write(KEY[0], b"content")
    kept.write(KEY[0], b"content")
    assert kept.read(KEY[0]) == b"content" and kept.read(KEY[1]) is None
    assert len(list(place.iterdir())) == 1 and place.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:40] + b"X" + b[41:], lambda b: b"", lambda b: b[:8]])
def test_a_broken_entry_is_removed_and_not_used(place: Path, damage: object) -> None:
    kept.write(KEY[0], b"some content that is long enough")
    (path,) = place.iterdir()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert kept.read(KEY[0]) is None and not path.exists()


def test_it_keeps_to_its_size_and_drops_what_was_not_used_for_longest(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kept.GIGABYTES, str(3000 / 1e9))
    for i, key in enumerate(KEY[:2]):
        kept.write(key, bytes(1000))
        os.utime(place / f"{key}.kept", (time.time() - 1000 + i, time.time() - 1000 + i))
    assert kept.read(KEY[0]) is not None  # used now
    kept.write(KEY[2], bytes(1000))
    assert [kept.read(key) is not None for key in KEY[:3]] == [True, False, True]
    kept.write(KEY[3], bytes(4000))
    assert kept.read(KEY[3]) is None, "larger than the whole cache"


def test_nothing_stays_that_is_older_than_what_goes(place: Path) -> None:
    for age, (key, size) in enumerate(zip(KEY, (1000, 3000, 1000, 10), strict=True)):
        kept.write(key, bytes(size))
        os.utime(place / f"{key}.kept", (time.time() - 100 * age, time.time() - 100 * age))
    assert [e.path.stem for e in kept.prune(3000)] == KEY[1:], "the small ones behind the large one, too"
    kept.remove(KEY[0])
    kept.remove(KEY[0])
    assert kept.entries() == []


def test_what_only_its_hash_makes_too_large_pushes_nothing_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.write(KEY[0], b"content")
    monkeypatch.setenv(kept.GIGABYTES, str(3000 / 1e9))
    assert not kept.write(KEY[1], bytes(3000)) and kept.read(KEY[0]) == b"content"


def test_prune_by_age_touches_only_what_is_its_own(place: Path) -> None:
    kept.write(KEY[0], b"old")
    kept.write(KEY[1], b"new")
    stranger, half = place / "mine.kept", place / f"{KEY[2]}.12345678.new"
    for path in (place / f"{KEY[0]}.kept", stranger, half):
        path.write_bytes(path.read_bytes() if path.exists() else b"x")
        os.utime(path, (0, 0))
    assert len(kept.prune(10**9, 3600.0, dry_run=True)) == 2 and half.exists()
    assert {e.path for e in kept.prune(10**9, 3600.0)} == {place / f"{KEY[0]}.kept", half}
    assert sorted(p.name for p in place.iterdir()) == sorted([f"{KEY[1]}.kept", "mine.kept"])


@pytest.mark.parametrize("told", ["", "off", "OFF"])
def test_it_can_be_switched_off(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kept.FOLDER, told)
    kept.write(KEY[0], b"content")
    assert kept.folder() is None and kept.read(KEY[0]) is None and kept.entries() == [] and kept.prune(0) == []


def test_a_folder_that_others_may_write_to_is_not_used(place: Path) -> None:
    kept.write(KEY[0], b"content")
    place.chmod(0o777)
    assert kept.folder() is None and kept.read(KEY[0]) is None


def test_where_nothing_can_be_written_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "file" / "kept"))
    monkeypatch.setenv(kept.GIGABYTES, "many")
    kept.write(KEY[0], b"content")
    assert kept.read(KEY[0]) is None and kept.limit_bytes() == 10**10


def test_the_place_without_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kept.FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept.folder() == tmp_path / "moec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kept.folder() == tmp_path / ".cache" / "moec"


def test_a_place_of_nobodys_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kept.FOLDER, "~nobody-of-this-name/kept")
    assert kept.folder() is None and kept.read(KEY[0]) is None


def test_processes_share_it(place: Path) -> None:
    write = "import sys; from moec.files import kept\nfor i in range(200): kept.write(sys.argv[1], bytes(50000))"
    running = [subprocess.Popen([sys.executable, "-c", write, KEY[0]]) for _ in range(2)]
    while any(process.poll() is None for process in running):
        assert kept.read(KEY[0]) in (None, bytes(50000))
    assert [process.returncode for process in running] == [0, 0] and kept.read(KEY[0]) == bytes(50000)
    assert len(list(place.iterdir())) == 1
