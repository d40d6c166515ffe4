"""What libraries print while a verb runs is not among our lines."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

import pytest

from moec.cli import main
from moec.cli.console import say
from moec.cli.foreign import foreign_streams
from moec.cli.terminal import TERMINAL


def noise() -> None:
    """A warning, a bar, a logger and a model's own print."""
    warnings.warn("old argument", FutureWarning, stacklevel=1)
    print("\rLoading:  10%\rLoading: 100%", file=sys.stderr)
    logging.getLogger("somebody").warning("careful")
    print("a model says")
    say("result")
    say("ours", err=True)


@pytest.mark.filterwarnings("always")
def test_nothing_of_others_is_among_our_lines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", lambda *args, **_: sys.stderr.write(f"{args[0]}\n"))
    handler = logging.StreamHandler()  # of our stderr: it was there before
    logging.getLogger("somebody").addHandler(handler)
    try:
        TERMINAL.open_log(tmp_path / "log")
        with foreign_streams(), foreign_streams():
            noise()
        assert capsys.readouterr() == ("result\n", "a model says\nours\n")
        log = (tmp_path / "log").read_text()
        assert all(word in log for word in ("old argument", "Loading: 100%", "careful", "a model says", "ours"))
        assert "Loading:  10%" not in log
        TERMINAL.verbosity = 2
        with foreign_streams():
            noise()
        assert "careful" in (shown := capsys.readouterr().err) and "old argument" in shown
        print("after", file=sys.stderr)
        logging.getLogger("somebody").warning("later")
        assert capsys.readouterr().err == "after\nlater\n"
    finally:
        logging.getLogger("somebody").removeHandler(handler)
        TERMINAL.reset()


def test_a_stream_that_somebody_kept_passes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with foreign_streams():
        kept = sys.stderr
        kept.write("begun")
        assert not kept.isatty() and kept.encoding == "utf-8"
    print("later", file=kept)
    assert capsys.readouterr() == ("", "later\n")
    with foreign_streams(), pytest.raises(ZeroDivisionError):
        raise ZeroDivisionError
    assert TERMINAL.stdout is None and sys.stderr is not kept


def test_a_debugger_keeps_the_streams(capsys: pytest.CaptureFixture[str]) -> None:
    TERMINAL.debug = True
    try:
        with foreign_streams():
            print("(Pdb) ", end="")
    finally:
        TERMINAL.reset()
    assert capsys.readouterr().out == "(Pdb) "


NOISY = """
import logging, sys, warnings
import torch
from torch import Tensor, nn
from tqdm import tqdm


def noise() -> None:
    for _ in tqdm(range(2), desc="loading", disable=False):
        warnings.warn("an old argument", FutureWarning)
    logging.getLogger("noisy").warning("careful")
    print("to stderr", file=sys.stderr)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            noise()
        return self.layer(x).softmax(-1)


def net() -> nn.Module:
    noise()
    torch.manual_seed(0)
    return Net()
"""
LINES = ("account", "capture", "weights", "passes", "build", "verify")


@pytest.mark.filterwarnings("always")
def test_stderr_of_each_verb_holds_only_our_lines(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By file descriptor, so that what libraries written in C print counts, too."""
    monkeypatch.chdir(tmp_path)
    Path("noisy.py").write_text(NOISY)
    for command in (
        "compile noisy.py:net --input x=batch,8:float32 -o engine --log log.txt",
        "run engine --trust-remote-code",
        "bench engine --eager --runs 1 --trust-remote-code",
        "verify engine --trust-remote-code --quiet --json",
        "inspect noisy.py:net --input x=batch,8:float32",
    ):
        with pytest.raises(SystemExit) as ended:
            main(command.split())
        out, err = capfd.readouterr()
        assert ended.value.code == 0, err
        assert [line for line in err.splitlines() if not line.strip().startswith(LINES)] == []
        assert err == "" or command.startswith("compile")
        assert json.loads(out)["ok"] if "--json" in command else "careful" not in out
    log = Path("log.txt").read_text()
    assert "to stderr" in log and "loading: 100%" in log  # pytest keeps warnings and loggers for itself
