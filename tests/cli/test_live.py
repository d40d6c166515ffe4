"""Progress is a line a stage, and on a terminal the running one with its rate and the time left."""

from __future__ import annotations

import io

import pytest

from moec.cli.console import waiting
from moec.cli.live import ConsoleProgress, QuietProgress, amount, clear_screen
from moec.cli.terminal import TERMINAL
from moec.progress import Progress
from tests.cli.test_terminal import Screen


def work(progress: Progress) -> None:
    progress.stage("build")
    progress.advance(2**20, 2**22, "B", "layers.0.weight")
    progress.detail("fuse-moe: 2 rewrites")
    progress.step("lower-experts", str)
    progress.done("model.onnx 4.00 MiB")


def said(progress: Progress, stream: io.StringIO, verbosity: int = 0) -> str:
    TERMINAL.stderr, TERMINAL.verbosity = stream, verbosity
    try:
        work(progress)
    finally:
        clear_screen()
        TERMINAL.reset()
    return stream.getvalue()


@pytest.mark.parametrize(("verbosity", "lines"), [(0, 1), (1, 2), (2, 3)])
def test_a_pipe_gets_a_line_a_stage_and_more_on_request(verbosity: int, lines: int) -> None:
    text = said(ConsoleProgress(), io.StringIO(), verbosity)
    assert len(text.splitlines()) == lines and text.splitlines()[-1].startswith("  build      model.onnx 4.00 MiB  (0.")
    assert ("peak" in text) is (verbosity > 0) and ("lower-experts  (0." in text) is (verbosity > 1)
    assert "\x1b" not in text and said(QuietProgress(), io.StringIO(), verbosity) == ""


def test_a_terminal_gets_a_bar_that_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = said(ConsoleProgress(), Screen(), 1)
    assert "\x1b[?25l" in text and text.rindex("\x1b[?25h") < text.rindex("model.onnx")
    last = text[text.rindex("\x1b[2K") + 4 :]
    assert last.startswith("\x1b[36m  build      \x1b[0mmodel.onnx 4.00 MiB") and last.endswith("iB)\n")
    assert all(len(line.removeprefix("\x1b[36m")) <= 44 for line in last.splitlines())


def test_a_bar_is_taken_away_before_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    TERMINAL.stderr = Screen()
    try:
        ConsoleProgress().stage("capture")
        shown = TERMINAL.stderr.getvalue()
        clear_screen()
        assert "\x1b[?25h" not in shown and "\x1b[?25h" in TERMINAL.stderr.getvalue()
    finally:
        TERMINAL.reset()


def test_how_far_it_is() -> None:
    mib = 2.0**20
    assert amount(12 * mib, 48 * mib, 9 * mib, 4.2, "B", "embed") == "12.0 MiB of 48.0 MiB  9.00 MiB/s  4 s left  embed"
    assert amount(3, 13, 1.0, 10.0, what="Outputs") == "3 of 13  Outputs"
    assert amount(3, 13, 1.0, 10.0, what="Outputs", peak=310 * mib) == "3 of 13  peak 310 MiB  Outputs"
    for left, shown in ((0.4, "0 s"), (59.6, "1 min 0 s"), (200.0, "3 min 20 s"), (3900.0, "1 h 5 min")):
        assert amount(mib, 2 * mib, mib, left, "B") == f"1.00 MiB of 2.00 MiB  1.00 MiB/s  {shown} left"


def test_waiting_leaves_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for stream, quiet, shows in ((Screen(), False, True), (Screen(), True, False), (io.StringIO(), False, False)):
        TERMINAL.stderr = stream
        try:
            with waiting("verify", quiet):
                pass
        finally:
            TERMINAL.reset()
        assert ("verify" in stream.getvalue()) is shows and not stream.getvalue().endswith("verify\n")


def test_a_warning_is_said_under_quiet_too() -> None:
    for progress in (QuietProgress(), ConsoleProgress()):
        TERMINAL.stderr = stream = io.StringIO()
        try:
            progress.warn("too much")
        finally:
            TERMINAL.reset()
        assert stream.getvalue() == "warning: too much\n"
    with pytest.warns(UserWarning, match="too much"):
        Progress().warn("too much")
