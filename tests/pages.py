"""The documentation as data: pages, their fenced blocks, links and names in code."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!-- (?P<kind>not run|needs|file|output of the block above)(?:: (?P<value>.+?))? -->\s*$")


@dataclass(frozen=True)
class FencedBlock:
    """A fenced block of a page.

    Attributes:
        page: the file. line: of its first line of text, from 1.
        language: the tag after the fence, empty when there is none.
        text: without the fence's own indentation.
        marker: what the comment before the block says: `not run`, `needs`, `file`, or `output of the block above`.
        value: the reason, the target, or the file's name.
    """

    page: Path
    line: int
    language: str
    text: str
    marker: str = ""
    value: str = ""

    @property
    def place(self) -> str:
        """For messages and names of tests."""
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page.name}:{self.line}"

    def commands(self) -> list[str]:
        """The commands of a shell block, continued lines joined, without comment lines; of a console, without what was
        printed."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            return [line[2:].strip() for line in lines if line.startswith("$ ")]
        return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def blocks(page: Path) -> list[FencedBlock]:
    """All fenced blocks of a page, in order."""
    text, found = page.read_text(), []
    for fence in _FENCE.finditer(text):
        marker = _MARKER.search(text[: fence.start()].rstrip(" ")) if _is_adjacent(text, fence.start()) else None
        found.append(
            FencedBlock(
                page,
                text.count("\n", 0, fence.start("text")) + 1,
                fence["language"],
                textwrap.dedent(fence["text"]),
                marker["kind"] if marker else "",
                (marker["value"] or "") if marker else "",
            )
        )
    return found


def _is_adjacent(text: str, start: int) -> bool:
    before = text[:start].splitlines()
    return bool(before) and before[-1].rstrip().endswith("-->")


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def spans(page: Path) -> list[str]:
    """The code in the lines of a page, as it is read: the escape that a table needs is gone."""
    return [" ".join(s.replace(r"\|", "|").split()) for s in re.findall(r"`([^`]+)`", prose(page))]


def links(page: Path) -> list[str]:
    """The relative links of a page, those in the text and those that are named at its end."""
    found = re.findall(r"\]\(([^)\s]+)\)|^\[\w+\]: (\S+)$", prose(page), re.MULTILINE)
    return [t for t in map("".join, found) if not re.match(r"[a-z]+:", t)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}
