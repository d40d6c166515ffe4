"""Errors as annotations, which GitHub shows beside a file and on a run's page: `::error file=…,title=…::…`.

The form is that of GitHub's workflow commands: one line, `%` and ends of lines escaped, in properties `:` and `,` too.
"""

from __future__ import annotations

import os
from pathlib import Path

from moec.errors import MoecError
from moec.shown import shown

_IN_TEXT = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_IN_PROPERTY = {**_IN_TEXT, ":": "%3A", ",": "%2C"}


def are_wanted(asked: bool | None = None) -> bool:
    """Whether errors are to be annotated: as the user says, else where a runner of GitHub Actions is at work."""
    return os.environ.get("GITHUB_ACTIONS") == "true" if asked is None else asked


def annotation(error: MoecError, file: Path | None = None) -> str:
    """An error as one line for a runner; `file` is what the annotation is shown beside, as the repository has it."""
    properties = {"file": _in_repository(file)} if file else {}
    named = {**properties, "title": f"moec {error.code}"}
    said = f"{error.what}\nwhere: {error.where}\nfix: {error.fix}"
    return (
        f"::error {','.join(f'{k}={_escaped(v, _IN_PROPERTY)}' for k, v in named.items())}::{_escaped(said, _IN_TEXT)}"
    )


def _in_repository(file: Path) -> str:
    """A path from the top of the checkout, as GitHub looks for it."""
    top, place = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd()).resolve(), file.resolve()
    return (place.relative_to(top) if place.is_relative_to(top) else file).as_posix()


def _escaped(text: str, table: dict[str, str]) -> str:
    return "".join(table.get(letter, letter) for letter in shown(text))
