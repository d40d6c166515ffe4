"""What `moec plan` advises, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from moec.planning.question import Advice


def advice_lines(advice: Sequence[Advice]) -> list[str]:
    """A line for each sentence, with its rule and verdict before it; nothing where there is none."""
    lines = [f"  {each.rule} → {each.verdict}: {each.text}" for each in advice]
    return ["", "advice", *lines] if lines else []
