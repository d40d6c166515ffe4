"""A picture of a terminal: runs a command where it believes to be on one, and draws what it printed as SVG.

usage: python docs/scripts/terminal.py PICTURE COMMAND
"""

from __future__ import annotations

import os
import pty
import re
import sys
from pathlib import Path

WIDTH = 118  # columns
_MOVES = re.compile(r"(\n|\r|\x1b\[\d*A|\x1b\[2?K|\x1b\[\?\d+[hl])")
_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # from a server: the reader's own monospaced font will do


def printed(command: str) -> str:
    """What a command prints on a terminal, with its colours. Raises SystemExit when it fails."""
    parts: list[bytes] = []

    def note(descriptor: int) -> bytes:
        data = os.read(descriptor, 65536)
        parts.append(data)
        return data

    os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(WIDTH), "LINES": "50"}
    status = os.waitstatus_to_exitcode(pty.spawn(["bash", "-c", f"stty cols {WIDTH} rows 50; {command}"], note))
    if status:
        raise SystemExit(f"exit status {status}: {command}")
    return b"".join(parts).decode()


def settled(text: str) -> str:
    """The lines as they stand in the end: what a progress line said before it was written over is gone."""
    lines, row = [""], 0
    for part in _MOVES.split(text.replace("\r\n", "\n")):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif up := re.fullmatch(r"\x1b\[(\d*)A", part):
            row = max(0, row - int(up[1] or 1))
        elif part == "\r" or re.fullmatch(r"\x1b\[2?K", part):
            lines[row] = ""
        elif not re.fullmatch(r"\x1b\[\?\d+[hl]", part):
            lines[row] += part
    return "\n".join(lines).strip("\n")


def draw(command: str, text: str) -> str:
    """The picture."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115, PTH123
    console.print(Text(f"$ {command}", style="bold"))
    console.print(Text.from_ansi(text))
    return _FONT.sub("", console.export_svg(title="moec", unique_id="moec"))


if __name__ == "__main__":
    out, said = Path(sys.argv[1]), " ".join(sys.argv[2:])
    out.write_text(draw(said, settled(printed(said))), encoding="utf-8")
