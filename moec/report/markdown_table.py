"""Tables in Markdown, as GitHub and hubs show them."""

from __future__ import annotations

from collections.abc import Sequence

from moec.shown import one_line


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table and an empty one after it; none without rows. What would end a cell is escaped."""
    if not rows:
        return []
    lines = (" | ".join(one_line(cell).replace("|", "\\|") for cell in row) for row in (header, *rows))
    head, *body = (f"| {line} |" for line in lines)
    return [head, "|" + "---|" * len(header), *body, ""]
