"""The Dockerfile: what it copies is there and in the context, what it installs exists, and it names no host.

No daemon builds it here: docs/ci.md says what was built of it, and how.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction and its arguments, lines joined."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.M)).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line)]


def test_the_images_are_those_that_the_comments_name() -> None:
    stages = [rest.split(" AS ")[1] for word, rest in instructions(TEXT) if word == "FROM"]
    assert stages == ["wheel", "cuda", "cpu"]  # without --target the last is built
    assert set(re.findall(r"--target (\w+)", TEXT)) <= set(stages)


def test_what_is_copied_is_there_and_in_the_context() -> None:
    copied = [rest.split()[:-1] for word, rest in instructions(TEXT) if word == "COPY" and "--from" not in rest]
    names = {name for each in copied for name in each}
    assert names and all((ROOT / name).exists() for name in names)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored and {line[1:] for line in ignored if line.startswith("!")} == names
    built_from = {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "moec",
        "passes",
        "backends",
    }  # as tests/test_wheel.py has it
    assert built_from <= names


def test_what_is_installed_exists() -> None:
    extras = [
        rest.partition("=")[2] for word, rest in instructions(TEXT) if word == "ARG" and rest.startswith("EXTRAS")
    ]
    assert len(extras) == 2 and all(name in EXTRAS for each in extras for name in each.split(","))


def test_nothing_runs_as_root_and_no_host_is_named() -> None:
    last = [word for word, _ in instructions(TEXT)]
    assert last.count("USER") == 2 and last.count("ENTRYPOINT") == 2
    assert not re.search(r"https?:|\b[\w-]+\.(com|org|io|net|dev)\b", TEXT)


def test_the_linter_has_nothing_to_say() -> None:
    if not shutil.which("hadolint"):
        pytest.skip("hadolint is not here")
    done = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
