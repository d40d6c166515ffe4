"""Files that the user asks for. One takes the place of an older one of its own form; of anything else, never.

What is asked for is looked at before the work, so that a mistake costs none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moec.errors import MoecError
from moec.files.fresh import write_over
from moec.files.regular import read_text

_TEXTS = ("", ".md", ".markdown", ".txt")  # endings of files that a summary is put at the end of


@dataclass(frozen=True)
class Form:
    """A form of file that moec writes: its name, and whether a text is of it and by moec."""

    name: str
    is_ours: Callable[[str], bool]


def junit_form(verb: str) -> Form:
    """JUnit XML of a verb: what `moec check` wrote is not replaced by a proof."""
    return Form(f"JUnit XML of `moec {verb}`", lambda text: f'<testsuites name="moec {verb}"' in text[:200])


def json_form(name: str, is_ours: Callable[[Any], bool]) -> Form:
    """JSON that is recognized by what is in it; `is_ours` may raise KeyError or TypeError for what is of another
    form."""

    def holds(text: str) -> bool:
        try:
            return is_ours(json.loads(text))
        except (ValueError, KeyError, TypeError, RecursionError):
            return False

    return Form(name, holds)


PAGE = Form(
    "report page",
    lambda text: text.startswith("<!doctype html>\n<html") and "<title>moec: " in text[:500],
)
PLAN_PAGE = Form(
    "page of `moec plan`",
    lambda text: text.startswith("<!doctype html>\n<html") and "<title>moec plan: " in text[:500],
)


def require_replaceable(path: Path, form: Form) -> None:
    """Raise M210 where a file would be lost: something lies there that is neither empty nor of this form. A pipe or a
    device keeps nothing that could be."""
    problem = _problem(path, form)
    if problem:
        raise MoecError("M210", problem, str(path), "choose another file, or move it away")


def _problem(path: Path, form: Form) -> str:
    try:
        if not path.exists():
            return "it is a link to nothing" if path.is_symlink() else ""
        if path.is_dir():
            return "it is a folder"
        ours = not path.is_file() or not path.stat().st_size or form.is_ours(read_text(path))
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    except ValueError:
        ours = False
    return "" if ours else f"a file lies there that is no {form.name} by moec, and would be lost"


def publish(path: Path, text: str, form: Form) -> None:
    """Write a report where the user asked for it. Raises M210 when it cannot be written, or a file would be lost."""
    require_replaceable(path, form)
    _write(path, text, "w")


def require_appendable(path: Path) -> None:
    """Raise M210 for a file that a summary would spoil. `$GITHUB_STEP_SUMMARY` is one, whatever its name."""
    if not path.exists() or not path.is_file() or str(path) == os.environ.get("GITHUB_STEP_SUMMARY"):
        return
    what = "a file lies there that is no Markdown, and would be spoiled"
    try:
        fine = path.suffix.lower() in _TEXTS and "\0" not in read_text(path)
    except OSError as error:
        fine, what = False, f"the file cannot be read: {error.strerror}"
    except ValueError:
        fine = False
    if not fine:
        raise MoecError("M210", what, str(path), "choose another file")


def append(path: Path, text: str) -> None:
    """Put a text at the end of a file, as jobs of GitHub write their summaries. Raises M210 when it cannot be."""
    require_appendable(path)
    _write(path, text, "a")


def _write(path: Path, text: str, mode: str) -> None:
    try:
        if mode == "w" and (path.is_file() or not path.exists()):
            write_over(path, text)
        else:
            _write_on(path, text)
    except OSError as error:
        what = f"the report cannot be written: {error.strerror}"
        raise MoecError("M210", what, str(path), "choose another file") from error


def _write_on(path: Path, text: str) -> None:
    """At the end of a file, whole or not at all; and into what is none."""
    length = path.stat().st_size if path.is_file() else None
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except BaseException:
        if length is not None:
            os.truncate(path, length)
        raise
