"""What a shell is told: the script that asks, and the answers that it gets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moec.cli.completion import SHELLS
from tests.command_line import Cli

PROGRAM = f'#!/bin/sh\nexec {sys.executable} -m moec "$@"\n'


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_names_the_program(cli: Cli, shell: str) -> None:
    script = cli("completion", shell)
    assert "moec" in script and "_MOEC_COMPLETE" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def answered(shell: str, line: str) -> list[str]:
    """What moec answers a shell, in a process of its own: each line as it is."""
    begun = "" if line.endswith(" ") else line.split()[-1]
    place = {"bash": "", "zsh": str(len(line.split()) - bool(begun)), "fish": begun}[shell]
    asked = {"_MOEC_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": place}
    done = subprocess.run(
        [sys.executable, "-m", "moec"], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("moec com", {"compile", "completion"}),
        ("moec compile --tar", {"--target"}),
        ("moec compile -t onnxruntime:cpu,tf32=", {"onnxruntime:cpu,tf32=false", "onnxruntime:cpu,tf32=true"}),
        ("moec compile --target=onnxruntime:pre", {"--target=onnxruntime:precision="}),
    ],
)  # fmt: skip
def test_every_shell_gets_the_same_answer(shell: str, line: str, answer: set[str]) -> None:
    found = answered(shell, line)
    values = found[1::3] if shell == "zsh" else [each.partition(",")[2].partition("\t")[0] for each in found]
    assert {value.replace("\\:", ":") for value in values} == answer


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("moec compile -t onnxruntime:cpu,thr", ["cpu,threads="]),  # bash takes words apart at colons
        ("moec explain moec::sel", ["selective_scan"]),
        ("moec compile --config mi", ["mine.toml"]),
        ("moec compile mod", ["model"]),
        ("moec ls mo", ["model"]),
    ],
)
def test_what_bash_puts_on_the_line(cli: Cli, line: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "moec").write_text(PROGRAM)
    (tmp_path / "moec").chmod(0o755)
    asks = "COMP_WORDBREAKS=$' \\t\\n\"\\'><=;|&(:'\nCOMP_LINE=\"$1\" COMP_POINT=${#1}\n_moec_completion ./moec\n"
    script = cli("completion", "bash") + asks + 'printf "%s\\n" "${COMPREPLY[@]}"\n'
    done = subprocess.run(["bash", "-c", script, "-", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == words


def test_an_answer_waits_for_no_torch() -> None:
    code = (
        "import os, sys, moec.cli\n"
        "os.environ.update(_MOEC_COMPLETE='bash_complete', COMP_WORDS='moec ' + sys.argv[1])\n"
        "try: moec.cli.main([])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules)"
    )
    for line in ("compile -t tensorrt-rtx:", "explain ", "compile --set quantize.", "plan --device h"):
        done = subprocess.run([sys.executable, "-c", code, line], capture_output=True, text=True, check=True)
        assert "plain," in done.stdout and "torch" not in done.stdout.splitlines()[-1].split()
