"""The transcript of the first hour is what its script wrote, of commands that exist."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.page_names import problems_of_flags
from tests.pages import ROOT, blocks

PAGE = ROOT / "docs" / "first-hour.md"
TERMINAL = r"""
import sys, time
assert sys.stdout.isatty()
sys.stdout.write("\r\x1b[K  capture    …"); sys.stdout.flush(); time.sleep(0.05)
print("\r\x1b[K  build      …\n\x1b[?25h\r\x1b[1A\x1b[2K  \x1b[1mcapture\x1b[0m    9 nodes")
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs" / "scripts"), *sys.path])
    importlib.import_module("terminal")
    return importlib.import_module("first_hour")


def test_the_transcript_has_every_step(scripts: ModuleType) -> None:
    """Written by `make first-hour`; a step that was changed asks for another run."""
    commands = [step.command for steps in scripts.STEPS.values() for step in steps]
    assert [block.text.splitlines()[0].removeprefix("$ ") for block in blocks(PAGE)] == commands
    assert [p for c in commands if c.startswith("moec ") for p in problems_of_flags(c)] == []
    assert len(re.findall(r"^[\d,.]+ s$", PAGE.read_text(), re.MULTILINE)) == len(commands)


def test_the_transcript_shows_a_success_and_a_refusal() -> None:
    said = {block.text.splitlines()[0]: block.text for block in blocks(PAGE)}
    assert "48/48 experts reached" in next(t for c, t in said.items() if "upcycle" in c)
    assert "did you mean quantize?" in next(t for c, t in said.items() if "quantise" in c)


def test_a_step_that_ends_otherwise_ends_the_script(scripts: ModuleType, tmp_path: Path) -> None:
    variables = {"PATH": "/usr/bin:/bin"}
    assert scripts._run(scripts.Step("echo a; exit 3", status=3), tmp_path, variables)[0] == "a\n"
    with pytest.raises(SystemExit, match="exit status 3, and 0 was expected"):
        scripts._run(scripts.Step("exit 3"), tmp_path, variables)


def test_a_long_output_says_what_it_lacks(scripts: ModuleType) -> None:
    lines = scripts._shortened("".join(f"{n}\n" for n in range(100)))
    assert lines[0] == "0" and lines[-1] == "99" and lines[20] == "… 60 lines …" and len(lines) == 41


def test_a_picture_of_a_terminal(scripts: ModuleType, tmp_path: Path) -> None:
    terminal = sys.modules["terminal"]
    (tmp_path / "a.py").write_text(TERMINAL)
    printed = terminal.settled(terminal.printed(f"{sys.executable} {tmp_path}/a.py"))
    assert printed == "  \x1b[1mcapture\x1b[0m    9 nodes"
    picture = terminal.draw("a", printed)
    assert "capture" in picture and "<svg" in picture and not re.search(r"url\(\W*http|@font-face|@import", picture)


def test_the_pictures_are_of_moec() -> None:
    for name, word in (("inspect", "parameters"), ("compile", "verify")):
        picture = (ROOT / "docs" / "pictures" / f"terminal-{name}.svg").read_text()
        assert word in picture and "font-face" not in picture
