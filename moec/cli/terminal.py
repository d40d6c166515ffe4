"""Where the command line prints, and how: streams of our own, colour and tables where a person looks, a log file.

While a verb runs, what libraries print goes elsewhere (`moec.cli.foreign`), so everything of ours is printed through
`TERMINAL`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import click

from moec.errors import MoecError
from moec.shown import aligned, one_line, shown
from moec.version import __version__

_FIRST = "#%moec-log "  # how a log of ours begins, and no text of anyone's; no other file is written to
_VERDICTS = (("verified", "green"), ("equal", "green"), ("proven on", "yellow"), ("DIFFERS", "red"), ("FAIL", "red"))


class Terminal:
    """Standard streams, how much is told, and the log.

    Attributes:
        verbosity: 0 for one line a stage, 1 for what passes and checks found, 2 for every step and what libraries say.
        debug: leave Python's streams as they are, so that a debugger can be used.
        annotate: what the user says of annotations; None where he says nothing.
        stdout, stderr: our own streams while a verb runs; None where Python's are ours.
    """

    def __init__(self) -> None:
        self.verbosity = 0
        self.debug = False
        self.annotate: bool | None = None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        self._log: IO[str] | None = None

    def stream(self, err: bool = False) -> IO[str]:
        """The stream that people or programs read."""
        return (self.stderr or sys.stderr) if err else (self.stdout or sys.stdout)

    def is_live(self, err: bool = False) -> bool:
        """Whether a person looks at it, on a terminal that can move its cursor."""
        stream = self.stream(err)
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"

    def colours(self, err: bool = False) -> bool:
        """Whether to print in colour: on a terminal, unless NO_COLOR (https://no-color.org) is set."""
        return self.is_live(err) and not os.environ.get("NO_COLOR")

    def write(self, text: str = "", err: bool = False, nl: bool = True, **style: Any) -> None:
        """Print a text, and note it in the log; names and other texts of foreign origin cannot steer the terminal.
        `style`: of `click.style`, where there is colour."""
        plain = shown(text)
        colour = bool(style) and self.colours(err)
        click.echo(click.style(plain, **style) if colour else plain, file=self.stream(err), nl=nl)
        if err:
            self.note(plain)

    def note(self, text: str) -> None:
        """Write lines into the log, each with the time."""
        if self._log is not None:
            now = time.strftime("%Y-%m-%dT%H:%M:%S")
            self._log.writelines(f"{now}  {line}\n" for line in shown(text).splitlines())
            self._log.flush()

    def open_log(self, path: Path) -> None:
        """Append to a log file from now on. Raises M210 for a file that is something else, or cannot be written."""
        try:
            if path.exists() and path.stat().st_size and not _is_log(path):
                raise MoecError("M210", "the file is no log of moec's", str(path), "name another --log")
            self._log = path.open("a", encoding="utf-8")
        except OSError as error:
            what = f"the log cannot be written: {error.strerror}"
            raise MoecError("M210", what, str(path), "name another --log") from error
        self._log.write(f"{_FIRST}{__version__} on Python {sys.version.split()[0]}\n")
        self.note("$ " + " ".join(["moec", *sys.argv[1:]]))

    def reset(self) -> None:
        """As it was before the command line was read."""
        if self._log is not None:
            self._log.close()
        self.verbosity, self.debug, self.annotate = 0, False, None
        self._log, self.stdout, self.stderr = None, None, None

    # ------------------------------------------------------------------ forms
    def verdict(self, text: str, err: bool = False) -> str:
        """A line with its verdict in colour, where there is colour; foreign texts cannot steer the terminal."""
        plain = shown(text)
        if not self.colours(err):
            return plain
        for word, colour in _VERDICTS:
            if (at := plain.find(word)) >= 0:
                end = next((k for k in range(at, len(plain)) if plain[k] in ":;\n"), len(plain))
                return plain[:at] + click.style(plain[at:end], fg=colour, bold=True) + plain[end:]
        return plain

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
        """Rows under their heads: lines and bold heads on a terminal, and only as wide as it is; aligned text in a
        pipe. `right`: columns of figures."""
        cells = [[one_line(cell) for cell in row] for row in rows]
        return (
            self._drawn(columns, cells, right) if self.is_live() else "\n".join(aligned([list(columns), *cells], right))
        )

    def _drawn(self, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> str:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(file=self.stream(), no_color=not self.colours(), highlight=False)
        widths = [
            max(map(len, column)) if k in right else 5 for k, column in enumerate(zip(columns, *rows, strict=True))
        ]
        if sum(widths) + 2 * len(widths) > console.width:  # figures would be broken or cut: the terminal breaks lines
            return "\n".join(aligned([list(columns), *rows], right))
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", border_style="dim")
        for k, name in enumerate(columns):
            figures = k in right
            table.add_column(name, justify="right" if figures else "left", overflow="fold", no_wrap=figures)
        for row in rows:
            table.add_row(*map(Text, row))
        with console.capture() as drawn:
            console.print(table)
        return drawn.get().strip("\n")


def _is_log(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_FIRST)) == _FIRST.encode()


TERMINAL = Terminal()
