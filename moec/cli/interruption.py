"""How the command line ends at Ctrl-C, and at signals that ask to end: nothing half is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

from moec.cli.terminal import TERMINAL
from moec.files.workplace import abandon

ENDED_BY_SIGNAL = 128  # and the signal's number is what shells say of a program that one ended
_CURSOR = "\r\x1b[K\x1b[?25h"  # clears the line of a bar, and shows the cursor that it hid


class Interruption:
    """Ctrl-C, and signals that ask to end.

    Ctrl-C raises KeyboardInterrupt, so that what was begun is taken back. Where PyTorch catches everything it swallows
    this too, so it is asked for when a stage ends or begins. SIGTERM and SIGHUP have to end the process whatever it is
    doing, also where an exception would pass through C++: they remove its work folders at once, and end it.
    """

    def __init__(self) -> None:
        self._asked = self.seen = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Note signals from now on; where they are ignored, as in a shell's background jobs, they stay so."""
        self._asked = self.seen = False
        if threading.current_thread() is not threading.main_thread():
            return  # only that one hears signals
        for name, handler in (("SIGINT", self._note), ("SIGTERM", self._end), ("SIGHUP", self._end)):
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                self._before[number] = signal.signal(number, handler)

    def remove(self) -> None:
        """Leave signals as they were."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, *_: Any) -> None:
        self._asked = self.seen = True
        raise KeyboardInterrupt

    def _end(self, number: int, *_: Any) -> None:
        abandon()
        back = _CURSOR if TERMINAL.is_live(err=True) else ""
        with contextlib.suppress(OSError):  # not through Python's streams: one may be in use at this moment
            os.write(2, (back + _interrupted(f"by {signal.Signals(number).name}") + "\n").encode())
        os._exit(ENDED_BY_SIGNAL + number)

    def check(self) -> None:
        """Raise KeyboardInterrupt if one was noted and swallowed."""
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt

    def report(self) -> int:
        """Say on stderr that Ctrl-C ended the program; returns the exit status."""
        TERMINAL.write(_interrupted("at your request"), err=True)
        return ENDED_BY_SIGNAL + signal.SIGINT


def _interrupted(how: str) -> str:
    return f"interrupted\n  where: {how}\n  fix:   no half engine was published; run it again"


INTERRUPTION = Interruption()
