"""`moec cache` and `moec clean` remove what moec made and nothing else, and say so before when asked."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from moec.files import kept
from moec.files.workplace import workplace
from tests.command_line import Cli

KEYS = [f"{i:064x}" for i in range(3)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "kept"))
    for i, key in enumerate(KEYS):
        kept.write(key, bytes(10**6))
        os.utime(tmp_path / "kept" / f"{key}.kept", (time.time() - 86400 * i - 9,) * 2)
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    return tmp_path / "kept"


def test_cache_says_where_and_how_much(cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("cache", "dir") == f"{place}\n"
    assert "3 entries, 2.86 MiB of 9.31 GiB" in cli("cache")
    said = cli.json("cache")
    assert said["folder"] == str(place) and said["entries"] == 3 and said["bytes"] == 3 * (10**6 + 32)
    monkeypatch.setenv(kept.FOLDER, "off")
    assert cli("cache") == cli("cache", "dir") == "off\n" and cli.json("cache")["folder"] is None


def test_cache_prune_and_clear(cli: Cli, place: Path) -> None:
    assert f"{KEYS[2]}.kept" in cli("cache", "prune", "--max-days", "1.5", "--dry-run")
    assert len(list(place.iterdir())) == 4
    assert "1 removed, 977 KiB" in cli("cache", "prune", "--max-days", "1.5")
    assert cli.json("cache", "prune", "--max-gb", "0.0015")["removed"] == [str(place / f"{KEYS[1]}.kept")]
    assert cli("cache", "prune") == "nothing to remove\n"
    cli("cache", "clear")
    assert [p.name for p in place.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "words",
    [
        "clear --max-days 30",
        "clear --max-gb 1",
        "--max-gb 1",
        "dir --dry-run",
        "prune --max-gb nan",
        "prune --max-gb inf",
    ],
)
def test_an_option_that_means_nothing_is_refused(words: str, cli: Cli, place: Path) -> None:
    cli("cache", *words.split(), status=2)
    assert "error[M201]" in cli.err and "--" in cli.err and len(list(place.iterdir())) == 4


def test_what_cannot_be_removed_is_said(cli: Cli, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError("the disk is read-only")

    dead = left_behind(tmp_path / "a")
    monkeypatch.setattr(Path, "unlink", denied)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    said = cli.json("cache", "clear", status=1)
    assert said["removed"] == [] and len(said["found"]) == len(said["left"]) == 3 and said["bytes"] == 0
    said = cli.json("clean", tmp_path, status=1)
    assert (said["removed"], said["left"], said["bytes"]) == ([], [str(dead)], 0)
    assert f"cannot be removed: {dead}" in cli.err and "nothing removed" in cli("clean", tmp_path, status=1)


def left_behind(out: Path) -> Path:
    """The work folder of a process that was killed."""
    folder = out.parent / f".{out.name}.moec-0123abcd"
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "model.onnx.data").write_bytes(bytes(2**20))
    return folder


def test_clean_removes_what_dead_runs_left(cli: Cli, tmp_path: Path) -> None:
    dead = [left_behind(tmp_path / "a"), left_behind(tmp_path / "today" / "b")]
    (dead[0] / "old").mkdir()
    (dead[0] / "old" / "moec.json").write_text("{}")  # the engine that it had moved aside
    others = [tmp_path / "today" / "engine", tmp_path / ".a.moec-0123", tmp_path / ".hidden" / ".c.moec-0123abcd"]
    for other in others:
        other.mkdir(parents=True)
    (tmp_path / ".file.moec-0123abcd").write_text("a file of the user")
    (tmp_path / ".link.moec-0123abcd").symlink_to(others[0])
    with workplace(tmp_path / "alive") as alive:
        (alive / "model.onnx").write_text("at work")
        listed = cli.json("clean", tmp_path, "--dry-run")
        assert alive.exists() and str(alive) not in listed["found"] and listed["removed"] == []
        cli("clean", tmp_path)
        assert (alive / "model.onnx").exists()
    assert not dead[0].exists() and not dead[1].exists() and all(other.exists() for other in others)
    assert (tmp_path / ".file.moec-0123abcd").exists() and (tmp_path / ".link.moec-0123abcd").is_symlink()
    assert (tmp_path / "a" / "moec.json").exists()
    assert cli("clean", tmp_path) == "nothing to remove\n"


def test_clean_lists_first(cli: Cli, tmp_path: Path) -> None:
    dead = left_behind(tmp_path / "a")
    text = cli("clean", tmp_path, "--dry-run")
    assert str(dead) in text and "1 would go, 1.00 MiB" in text and dead.exists()
    assert cli.json("clean", tmp_path)["removed"] == [str(dead)] and not dead.exists()
    cli("clean", tmp_path / "nowhere", status=2)
    assert "no such folder" in cli.err
