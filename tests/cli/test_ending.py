"""However a command ends, it says so in three lines and with the right exit status; no stream has to be open."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from moec.cli import main
from moec.cli.ending import as_moec_error
from tests.cli.test_bad_input import assert_nothing_published, assert_three_lines, moec, start

NET = """
import sys, torch
{top}
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        {made}
        self.layer = torch.nn.Linear(4, 2)
    def forward(self, x):
        {run}
        return self.layer(x)
"""


def net(folder: Path, **lines: str) -> str:
    """A model in a Python file with a line of its own at some place."""
    text = NET.format(**{"top": "", "made": "pass", "run": "pass", **lines})
    (folder / "net.py").write_text(text)
    return f"{folder / 'net.py'}:Net"


@pytest.mark.parametrize("line", ["sys.exit(0)", "raise KeyboardInterrupt", "raise GeneratorExit", "raise SystemExit"])
@pytest.mark.parametrize("place", ["top", "made", "run"])
def test_code_of_a_model_that_ends_the_program(
    place: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = net(tmp_path, **{place: line})
    status, err = moec(capsys, "compile", model, "--input", "x=batch,4:float32", "-o", tmp_path / "engine")
    assert status == 2
    assert_three_lines(err, "M204" if place != "run" and "Keyboard" not in line else "M219")
    assert_nothing_published(tmp_path)


def test_a_question_on_stdin_gets_no_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net(tmp_path, top="answer = input('Do you wish to run the custom code? [y/N] ')")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    status, err = moec(capsys, "inspect", model, "--input", "x=batch,4:float32")
    assert status == 2 and "EOFError" in err
    assert sys.stdin.read() == "y\n"


def shell(script: str) -> subprocess.CompletedProcess[str]:
    command = script.replace("moec", f"{sys.executable} -m moec")
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("moec ls presets >&-", 0),
        ("moec ls presets 2>&-", 0),
        ("moec ls presets <&- >&- 2>&-", 0),
        ("moec ls nonsense 2>&-", 2),
        ("moec ls nonsense >&- 2>&-", 2),
        ("moec ls presets >/dev/full", 2),
        ("set -o pipefail; moec ls presets | sleep 0", 141),
    ],
)
def test_streams_that_are_closed(script: str, status: int) -> None:
    done = shell(script)
    assert done.returncode == status or (status, done.returncode) == (141, 0), done.stderr  # it may be read in time
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_no_file_becomes_stderr(tmp_path: Path) -> None:
    """Where stderr is closed, the first file that is opened gets its number, and messages went into it."""
    code = (
        "import os, sys; os.close(2); from moec.cli.ending import standard_streams\n"
        f"with standard_streams(False):\n    fd = os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY)\n"
        "    assert fd > 2, fd"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(2, "No such file or directory", "/a/b"), "M218"),
        (OSError(28, "No space left on device"), "M210"),
        (MemoryError("8 GiB"), "M302"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "M302"),
        (SystemExit(0), "M219"),
        (EOFError(), "M219"),
        (click.FileError("x", "no"), "M201"),
        (KeyError("x"), None),
    ],
)
def test_errors_of_others_and_bugs_of_ours(error: BaseException, code: str | None) -> None:
    found = as_moec_error(error)
    assert (found.code if found else None) == code


def test_a_signal_that_ends_leaves_nothing(mixtral: Path, tmp_path: Path) -> None:
    by = signal.SIGTERM
    process = start("compile", mixtral, "-o", tmp_path / "engine")
    deadline = time.monotonic() + 120
    while not any(p.name.startswith(".engine.") for p in tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(by)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + by, err
    assert err.splitlines()[-3:][0] == "interrupted" and by.name in err and "Traceback" not in err
    assert_nothing_published(tmp_path)


def test_names_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J"
    for arguments in (["inspect", f"{tmp_path}/{evil}"], [evil], ["explain", evil], ["compile", evil, "-o", evil]):
        status, err = moec(capsys, *arguments)
        assert status == 2 and "\\x1b]0;owned" in err and not set(err) & {"\x1b", "\x07"}


def test_files_beside_shadow_nothing(tmp_path: Path) -> None:
    """Neither in the current directory, nor beside a model, nor by the name of the model's own file."""
    for name in ("string", "onnx", "click", "numpy", "safetensors"):
        (tmp_path / f"{name}.py").write_text("open('mark', 'w')\n")
    net(tmp_path)
    (tmp_path / "net.py").rename(tmp_path / "string.py")
    command = [sys.executable, "-m", "moec", "inspect", "string.py:Net", "--input", "x=batch,4:float32"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "mark").exists()


def test_a_folder_called_moec_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "moec" / "presets").mkdir(parents=True)
    done = subprocess.run([sys.executable, "-m", "moec", "ls", "presets"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "int4" in done.stdout


def test_help_leaves_stdin_alone() -> None:
    before = sys.stdin
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and sys.stdin is before
    assert os.get_inheritable(0)


ENDS = """
import atexit, ctypes, sys, threading, time
from moec.cli.ending import leave
class Held:
    def __del__(self): print("taken apart")
held = Held()
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread", flush=True))).start()
print("Python", flush=True)
ctypes.CDLL(None).printf(b"C\\n")
leave(3)
"""
RUNS = """
import sys
class Held:
    def __del__(self): print("taken apart")
held, sys.argv = Held(), ["moec", "explain", "M101"]
from moec.cli import main
main()
"""


@pytest.mark.parametrize(("code", "status", "said"), [(ENDS, 3, ["Python", "thread", "at exit", "C"]), (RUNS, 0, None)])
def test_a_process_ends_with_all_that_is_due_and_takes_nothing_apart(
    code: str, status: int, said: list[str] | None
) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (status, "") and "taken apart" not in done.stdout
    assert sorted(done.stdout.splitlines()) == sorted(said) if said else done.stdout.startswith("M101")


def test_a_current_directory_that_is_gone_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    status, err = moec(capsys, "check", tmp_path)
    assert status == 2
    assert_three_lines(err, "M218")
    assert "the current directory is no longer there" in err
