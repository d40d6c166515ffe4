"""The table of `docs/serve.md`: which engine takes which form, and whether its text is moec's own engine's.

usage: python -m tests.serving.table [--write] [--only NAME]

Each row is run; an engine that is not installed has none. With `--write` the table in the page is replaced.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from textwrap import shorten

from tests.serving.engines import ROOT, SERVING, Refused, Serving
from tests.serving.forms import FORMS, PROMPT, TOKENS, Form, text_of

PAGE, START, END = ROOT / "docs" / "serve.md", "<!-- table of engines -->\n", "<!-- end of the table of engines -->"


def moec(*arguments: object) -> str:
    """`moec` in a process of its own; its stdout."""
    command = [sys.executable, "-m", "moec", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def found(engine: Serving, form: Form) -> str:
    """What came of one form in one engine."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = form.write(moec, Path(folder))
        try:
            text = engine.write(theirs, PROMPT, TOKENS)
        except Refused as refusal:
            return f'refused there: "{shorten(str(refusal), 44, placeholder=" …")}"'
        return "same text" if text == text_of(moec, ours) else "**another text**"


def rows(only: str) -> list[str]:
    """The table's rows, for engines whose name has `only` in it."""
    made = []
    for engine in SERVING:
        version = engine.installed() if only in engine.name else None
        for form in FORMS if version else ():
            if form.is_for(engine):
                made.append(f"| {engine.name} {version} | {form.title} | {found(engine, form)} |")
                print(made[-1], flush=True)
    return made


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--write", action="store_true")
    options.add_argument("--only", default="")
    chosen = options.parse_args()
    lines = [
        f"Run on {date.today()} by `python -m tests.serving.table`.\n",
        "| engine | form | what came of it |",
        "|---|---|---|",
    ]
    lines += rows(chosen.only)
    if chosen.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
        after = rest.partition(END)[2]
        PAGE.write_text(before + START + "\n".join(lines) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
