"""Sentences on a terminal: broken between words, where a pipe gets one line each."""

from __future__ import annotations

import shutil
import textwrap

from moec.cli.console import say
from moec.cli.terminal import TERMINAL

_READABLE = 120  # columns; a longer line is hard to read, however wide the terminal is


def say_wrapped(line: str) -> None:
    """Print a sentence; on a terminal no line is wider than it is, and what goes on stands further in."""
    for part in wrapped(line, shutil.get_terminal_size().columns) if TERMINAL.is_live() else [line]:
        say(part)


def wrapped(line: str, columns: int) -> list[str]:
    """The line in pieces of so many columns at most; a name or a path that is longer is not broken."""
    indent = line[: len(line) - len(line.lstrip())]
    width = max(min(columns, _READABLE), 20)
    return textwrap.wrap(
        line, width, subsequent_indent=f"{indent}  ", break_long_words=False, break_on_hyphens=False
    ) or [""]
