"""What the model was taken to be, and what the engine is without, as tables of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moec.program.decoder_signature import is_past

Table = tuple[str, list[list[str]], list[str]]


def account_tables(account: Mapping[str, Any]) -> list[Table]:
    """Title, rows and columns of each table; none of a report that was written without an account."""
    if not account:
        return []
    rows = [["class", ", ".join(filter(None, (account["model"], account["declared"])))]]
    cached = sum(map(is_past, account["inputs"]))
    named = [name for name in account["inputs"] if not is_past(name)]
    rows += [["inputs", ", ".join([*named, *([f"a cache of {cached} tensors"] if cached else [])])]]
    if account["tensors"]:
        rows += [["tensors", f"{account['used']} of {account['tensors']} in the files"]]
    rows += [list(note.partition(": ")[::2]) if ": " in note else ["note", note] for note in account["notes"]]
    found: list[Table] = [("The model", rows, ["", ""])]
    left = [[x["thing"], x["name"], x["why"]] for x in account["left_out"]]
    return [*found, ("What the engine is without", left, ["", "name", "why"])] if left else found
