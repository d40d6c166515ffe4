"""A report takes the place of one of its own form and of nothing else, and a mistake costs no work."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from moec.cli.bench import FORMS
from moec.cli.report_file import PAGE, append, junit_form, publish, require_appendable
from moec.errors import MoecError
from moec.report.junit import junit
from tests.command_line import Cli

BUG = MoecError("M106", "it was changed", "engine", "compile it again")


def refused(path: Path, content: bytes) -> None:
    with pytest.raises(MoecError) as caught:
        publish(path, "<xml/>", junit_form("verify"))
    assert caught.value.code == "M210" and path.read_bytes() == content


def test_a_report_replaces_its_own_form_only(tmp_path: Path) -> None:
    file = tmp_path / "report.xml"
    for content in (b'{"proof": {}}', b"<testsuites/>", b'<testsuites name="moec check" tests="0">', b"\xff\x00"):
        file.write_bytes(content)
        refused(file, content)
    file.write_bytes(b"")
    for engine in ("a", "b"):
        publish(file, junit(engine, BUG), junit_form("verify"))
    assert '<testsuite name="b"' in file.read_text()
    publish(Path(os.devnull), "x", PAGE)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in (tmp_path, tmp_path / "link", tmp_path / "no" / "folder"):
        with pytest.raises(MoecError):
            publish(place, "x", PAGE)
    assert not (tmp_path / "nowhere").exists()


def test_the_pages_of_engines_are_told_from_those_of_others(mixtral_engine: Path) -> None:
    text = (mixtral_engine / "report.html").read_text()
    assert PAGE.is_ours(text) and not PAGE.is_ours(text.replace("<title>moec: ", "<title>mine: "))
    assert not FORMS[".html"].is_ours(text) and not FORMS[".json"].is_ours("[]") and not FORMS[".json"].is_ours("1")


def test_a_summary_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("step_summary_0b7c", "summary.md"):
        (tmp_path / name).write_text("# Before\n")
        append(tmp_path / name, "## Proof\n")
        assert (tmp_path / name).read_text() == "# Before\n## Proof\n"
    for name, content in (("moec.json", b"{}"), ("model", b"\0\1"), ("weights", b"\xff\xfe")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MoecError) as caught:
            append(tmp_path / name, "## Proof\n")
        assert caught.value.code == "M210" and (tmp_path / name).read_bytes() == content
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "moec.json"))
    require_appendable(tmp_path / "moec.json")


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "--junit"),
        ("verify", "--html"),
        ("verify", "--summary"),
        ("check", "--junit"),
        ("bench", "--export"),
    ],
)
def test_no_option_destroys_a_manifest(words: tuple[str, str], cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "moec.json").write_text("{}")
    verb, option = words
    cli(verb, tmp_path, option, tmp_path / "moec.json", status=2)
    assert "error[M210]" in cli.err and (tmp_path / "moec.json").read_text() == "{}"


def test_on_a_full_disk_the_report_that_lay_there_stays(tmp_path: Path) -> None:
    page, notes = tmp_path / "report.html", tmp_path / "notes.md"
    page.write_text("<!doctype html>\n<html><title>moec: old</title>")
    notes.write_text("# Mine\n")
    page.chmod(0o640)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # as a disk that is full: a write ends early
    try:
        for write in (lambda: publish(page, "x" * (1 << 20), PAGE), lambda: append(notes, "x" * (1 << 20))):
            with pytest.raises(MoecError, match="cannot be written") as caught:
                write()
            assert caught.value.code == "M210"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "old" in page.read_text() and notes.read_text() == "# Mine\n"
    assert sorted(tmp_path.iterdir()) == [notes, page]
    (tmp_path / "link.html").symlink_to(page)
    publish(tmp_path / "link.html", "new", PAGE)
    assert page.read_text() == "new" and page.stat().st_mode & 0o777 == 0o640 and (tmp_path / "link.html").is_symlink()
