"""Progress on stderr: a line a stage, and on a terminal the running one with its bytes, its rate and the time left."""

from __future__ import annotations

import shutil
import textwrap
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from moec.cli.interruption import INTERRUPTION
from moec.cli.terminal import TERMINAL
from moec.execution.memory import peak_rss_bytes
from moec.progress import Progress
from moec.shown import one_line, shown, size_of

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_WIDTH = 10  # of a stage's name
_TOGETHER = "\u00a0"  # no line breaks at it
_RUNNING: list[ConsoleProgress] = []  # whose bar is on the screen, one at most


def clear_screen() -> None:
    """Take away a bar that is on the screen, and give the cursor back: before an error is printed, or the end."""
    for progress in list(_RUNNING):
        progress.clear()


class QuietProgress(Progress):
    """Says nothing but to the log, and can be interrupted."""

    def __init__(self) -> None:
        self._name, self._start, self._stepped = "", 0.0, 0.0

    def stage(self, name: str) -> None:
        INTERRUPTION.check()
        self._name, self._start = name, time.perf_counter()
        self._stepped = self._start

    def detail(self, line: str, level: int = 1) -> None:
        TERMINAL.note(f"  {'':<{_WIDTH}} {line}")

    def step(self, name: str, text: Callable[[], str]) -> None:
        now = time.perf_counter()
        self.detail(f"{name}  ({now - self._stepped:.2f} s)", 2)
        self._stepped = now

    def warn(self, line: str) -> None:
        """On stderr, under --quiet, too."""
        clear_screen()
        TERMINAL.write(f"warning: {line}", err=True, fg="yellow")

    def done(self, detail: str = "") -> None:
        INTERRUPTION.check()
        TERMINAL.note(self._line(detail))

    def _line(self, detail: str) -> str:
        return f"  {self._name:<{_WIDTH}} {detail}  {self._cost()}"

    def _cost(self) -> str:
        seconds = f"{time.perf_counter() - self._start:.1f} s"
        return f"({seconds}, peak {size_of(peak_rss_bytes())})" if TERMINAL.verbosity else f"({seconds})"


class ConsoleProgress(QuietProgress):
    """Stages as lines on stderr; on a terminal the running one is drawn. With `-v`, details stand before its line."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Bar | None = None
        self._task: Any = None

    def stage(self, name: str) -> None:
        super().stage(name)
        self.clear()
        if TERMINAL.is_live(err=True):
            self._bar = _bar()
            self._task = self._bar.add_task(name, total=None, unit="", what="")
            self._bar.start()
            _RUNNING.append(self)

    def advance(self, done: int, total: int, unit: str = "", what: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, unit=unit, what=one_line(what)[:60])

    def detail(self, line: str, level: int = 1) -> None:
        if TERMINAL.verbosity < level:
            super().detail(line, level)
            return
        text = f"  {'':<{_WIDTH}} {line}"
        if self._bar is None:
            TERMINAL.write(text, err=True, dim=True)
        else:
            from rich.text import Text

            self._bar.console.print(Text(shown(text), "dim"))
            TERMINAL.note(text)

    def done(self, detail: str = "") -> None:
        INTERRUPTION.check()
        self.clear()
        if TERMINAL.is_live(err=True):
            click.echo(self._folded(detail), file=TERMINAL.stream(err=True))
            TERMINAL.note(self._line(detail))
        else:
            TERMINAL.write(self._line(detail), err=True)

    def _folded(self, detail: str) -> str:
        """The line of a stage, in as many as the terminal needs; its time stays in one piece."""
        indent, cost = " " * (_WIDTH + 3), self._cost().replace(" ", _TOGETHER)
        width = shutil.get_terminal_size().columns
        lines = textwrap.wrap(f"{indent}{shown(detail)}  {cost}", width, subsequent_indent=indent)
        text = "\n".join(lines).replace(_TOGETHER, " ")[len(indent) :]
        head = f"  {self._name:<{_WIDTH}} "
        return (click.style(head, fg="cyan") if TERMINAL.colours(err=True) else head) + text

    def clear(self) -> None:
        """Take the bar from the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            _RUNNING.remove(self)


def _bar() -> Bar:
    """A bar of one task, which vanishes when it is stopped."""
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(file=TERMINAL.stream(err=True), no_color=not TERMINAL.colours(err=True), highlight=False)
    name = TextColumn(f"  {{task.description:<{_WIDTH - 1}}}", style="cyan", markup=False)
    known = BarColumn(24)
    return Bar(
        name, SpinnerColumn(), known, _amount(), console=console, transient=True, redirect_stdout=False,
        redirect_stderr=False, refresh_per_second=8,
    )  # fmt: skip


def _amount() -> Any:
    """The column of figures: `12.3 MiB of 48.0 MiB  45.0 MiB/s  1 s left  peak 310 MiB  lm_head.weight`."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            peak = peak_rss_bytes()
            if not task.total:
                return Text(f"{task.elapsed or 0:.0f} s  {_peak(peak)}")
            unit, what = task.fields["unit"], task.fields["what"]
            return Text(amount(task.completed, task.total, task.speed, task.time_remaining, unit, what, peak))

    return Amount()


def amount(
    done: float, total: float, rate: float | None, left: float | None, unit: str = "", what: str = "", peak: int = 0
) -> str:
    """How far a running stage is: bytes (`unit` "B") or counts, bytes a second, the time left, and the peak of memory
    in bytes where it is known."""
    show = size_of if unit == "B" else lambda n: f"{n:.0f}"
    speed = f"{size_of(rate)}/s" if rate and unit == "B" else ""
    remaining = f"{_time(left)} left" if left is not None and unit == "B" else ""
    return "  ".join(filter(None, [f"{show(done)} of {show(total)}", speed, remaining, _peak(peak), what]))


def _peak(size_bytes: int) -> str:
    return f"peak {size_of(size_bytes)}" if size_bytes else ""


def _time(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `1 h 5 min`."""
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
