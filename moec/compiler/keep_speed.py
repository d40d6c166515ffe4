"""Keep a measurement with its engine: the file of its times, and the page that shows them."""

from __future__ import annotations

from pathlib import Path

from moec.compiler.staging import PAGE
from moec.errors import MoecError
from moec.files.workplace import workplace
from moec.report.artefacts import MANIFEST, SPEED_FILE
from moec.report.page import html
from moec.report.report import Report
from moec.report.speed import Speed, read_speeds, speeds_with


def keep_speed(folder: Path, speed: Speed) -> None:
    """Write a measurement into an engine's folder and draw its page again; the manifest stays as it is.

    Raises:
        MoecError: M201 where the folder is no engine's, M210 where it cannot be written or a file of that name is not
            moec's.
    """
    report = Report.read(folder / MANIFEST)
    try:
        _put(folder, SPEED_FILE, speeds_with(speed, folder, report.artefacts))
        _put(folder, PAGE, html(report, read_speeds(folder, report.artefacts)))
    except FileExistsError as error:
        what, fix = "there is a file of that name that moec did not write", "move it away"
        raise MoecError("M210", what, str(folder / SPEED_FILE), fix) from error
    except OSError as error:
        what, fix = f"the times cannot be kept: {error.strerror}", "leave --save out, or use --export FILE"
        raise MoecError("M210", what, str(folder), fix) from error


def _put(folder: Path, name: str, text: str) -> None:
    """Give a file its new content in one step."""
    with workplace(folder.resolve()) as place:
        (place / name).write_text(text, encoding="utf-8")
        (place / name).replace(folder / name)
