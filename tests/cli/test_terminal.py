"""What is printed fits where it is read: colour and lines for people, plain text for pipes, everything in the log."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from moec.cli.terminal import Terminal
from moec.errors import MoecError
from tests.command_line import Cli


class Screen(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    terminal = Terminal()
    terminal.stdout = terminal.stderr = Screen()
    return terminal


ROWS = [["layer.0", "12.3 K"], ["a\x1b[31mb", "1"]]


def test_a_pipe_gets_aligned_text() -> None:
    terminal = Terminal()
    terminal.stdout = io.StringIO()
    assert terminal.table(["name", "parameters"], ROWS, right=[1]).splitlines() == [
        "name        parameters",
        "layer.0         12.3 K",
        "a\\x1b[31mb           1",
    ]
    assert terminal.verdict("engine/  verified: x") == "engine/  verified: x"
    terminal.write("plain", bold=True)
    assert terminal.stdout.getvalue() == "plain\n"


def test_a_terminal_gets_colour_unless_it_is_not_wanted(screen: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    table = screen.table(["name", "parameters"], ROWS, right=[1])
    assert "\x1b[1m" in table and "─" in table and "\x1b[31m" not in table
    assert screen.verdict("e/  verified: x") == "e/  \x1b[32m\x1b[1mverified\x1b[0m: x"
    assert "\x1b[33m" in screen.verdict("e/  proven on the CPU, not yet run on tensorrt: x")
    monkeypatch.setenv("NO_COLOR", "1")
    table = screen.table(["name", "parameters"], ROWS, right=[1])
    assert "\x1b[3" not in table and "─" in table and screen.verdict("e/  verified: x") == "e/  verified: x"
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in screen.table(["name", "parameters"], ROWS)


def test_figures_are_never_broken_or_cut(screen: Terminal) -> None:
    figures = ["1,234,567–2,345,678"] * 2
    table = screen.table(["a name", "one", "two"], [["x" * 40, *figures]], right=[1, 2])
    assert table.count(figures[0]) == 2 and table.count("x") == 40
    wide = screen.table(["name", *"abcd"], [["x", *figures * 2]], right=[1, 2, 3, 4])
    assert wide.count(figures[0]) == 4 and "─" not in wide


def test_a_log_is_added_to_and_other_files_are_left_alone(tmp_path: Path) -> None:
    terminal, log, mine = Terminal(), tmp_path / "log.txt", tmp_path / "mine.txt"
    for line in ("first", "second"):
        terminal.open_log(log)
        terminal.note(line)
        terminal.reset()
    terminal.note("nowhere")
    lines = log.read_text().splitlines()
    assert [line for line in lines if line.startswith("#%moec-log ")] == [lines[0], lines[3]]
    assert lines[2].endswith("  first") and lines[5].endswith("  second") and len(lines) == 6
    mine.write_text("# moec notes\n")
    for path in (mine, tmp_path / "nowhere" / "log.txt"):
        with pytest.raises(MoecError) as caught:
            terminal.open_log(path)
        assert caught.value.code == "M210"
    assert mine.read_text() == "# moec notes\n"


def test_an_error_stands_in_the_log_with_its_traceback(cli: Cli, tmp_path: Path) -> None:
    cli("inspect", tmp_path / "nothing", "--log", tmp_path / "log", status=2)
    assert len(cli.err.splitlines()) == 3
    text = (tmp_path / "log").read_text()
    assert "$ moec" in text and "error[M2" in text and "Traceback" in text and "fix:" in text
