"""What a shell is told: the script that asks, and the answers that it gets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from moec.cli.completion import SHELLS
from tests.command_line import Cli


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_names_the_program(cli: Cli, shell: str) -> None:
    script = cli("completion", shell)
    assert "moec" in script and "_MOEC_COMPLETE" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("moec com", {"compile", "completion"}),
        ("moec compile --tar", {"--target"}),
        ("moec compile --target tensorrt-", {"tensorrt-rtx"}),
        ("moec compile --pass qu", {"quantize"}),
        ("moec compile --config int8", {"int8"}),
    ],
)
def test_an_answer(words: str, answer: set[str]) -> None:
    asked = {"_MOEC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "moec"], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert {line.split(",")[1] for line in done.stdout.split()} == answer and done.stderr == ""
