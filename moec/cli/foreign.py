"""What libraries and a model's own code print while a verb runs: none of it among our lines.

Progress bars and warnings of torch, transformers and others go to Python's stderr, where a person takes them for ours.
So while a verb runs, Python's streams are others: what is printed to stderr is shown under `-vv` and stands in the log,
and what a model prints to stdout goes to stderr, since stdout is for results.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from moec.cli.terminal import TERMINAL


class ForeignText(io.TextIOBase):
    """A stream for others. After the verb it passes everything on to Python's stderr, since a logger may have kept it.

    Args:
        ours: the stream that it stands for.
        least: the verbosity from which on its lines are shown.
    """

    def __init__(self, ours: IO[str], least: int) -> None:
        self._ours, self._least, self._begun, self.running = ours, least, "", True

    def write(self, text: str) -> int:
        if not self.running:
            return sys.stderr.write(text) if sys.stderr is not self else len(text)
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._tell(line)
        return len(text)

    def end(self) -> None:
        """The verb has ended; a line that was begun is told."""
        if self._begun:
            self._tell(self._begun)
        self._begun, self.running = "", False

    def _tell(self, line: str) -> None:
        last = line.rsplit("\r", 1)[-1]  # of a bar that redraws its line, the last state
        if TERMINAL.verbosity >= self._least:
            TERMINAL.write(last, err=True)
        else:
            TERMINAL.note(last)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._ours.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"


@contextmanager
def foreign_streams() -> Iterator[None]:
    """Python's streams are for others meanwhile, ours are `TERMINAL`'s. A verb inside another changes nothing."""
    if TERMINAL.stdout is not None or TERMINAL.debug:
        yield
        return
    before = sys.stdout, sys.stderr
    TERMINAL.stdout, TERMINAL.stderr = before
    sys.stdout, sys.stderr = out, err = ForeignText(before[0], 0), ForeignText(before[1], 2)  # type: ignore[assignment]
    was = _redirected(before[1], err)
    try:
        yield
    finally:
        out.end()
        err.end()
        sys.stdout, sys.stderr = before
        TERMINAL.stdout = TERMINAL.stderr = None
        for handler in was:
            handler.stream = before[1]


def _redirected(ours: IO[str], theirs: ForeignText) -> list[logging.StreamHandler[IO[str]]]:
    """Handlers of loggers that write to our stderr, made to write elsewhere."""
    loggers = [
        logging.getLogger(),
        *(x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger)),
    ]
    found = [h for logger in loggers for h in logger.handlers if getattr(h, "stream", None) is ours]
    for handler in found:
        handler.stream = theirs  # type: ignore[attr-defined]
    return found  # type: ignore[return-value]
