"""What MkDocs is told beside `mkdocs.yml`: generated pages, pages from outside `docs/`, and our Markdown in its own.

The pages are written for GitHub, where they are read beside the code. So links lead to files of the repository; a
file that a page links to and that lies outside `docs/` is part of the site, under `project/`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # moec's own modules, and those beside this file

import reference  # noqa: E402

PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
_LINK = re.compile(r"(\]\(|^\[\w+\]: )([^)\s:#]+)(#[^)\s]*)?(\)|$)", re.MULTILINE)
_FENCE = re.compile(r"^( *)```")
_BLOCK = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_ITEM = re.compile(r"^( *)(?:[-*]|\d+\.) ")
_TITLES = re.compile(r" *<!-- (file: (?P<file>\S+)|output of the block above) -->\n( *```\w+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the reference, and every file outside `docs/` that a page leads to."""
    for uri, text in reference.pages().items():
        files.append(File.generated(config, uri, content=text))
    wanted, seen = [*PROJECT, *_outside(Path(config.docs_dir).glob("*.md"))], set()
    while wanted:
        path = wanted.pop()
        if path not in seen:
            seen.add(path)
            files.append(File.generated(config, f"project/{path}", abs_src_path=str(ROOT / path)))
            wanted += _outside([ROOT / path] if path.endswith(".md") else [])
    return files


def _outside(pages: Iterable[Path]) -> list[str]:
    """Files of the repository, outside `docs/`, that pages link to."""
    found = [(page, link) for page in pages for _, link, *_ in _LINK.findall(_BLOCK.sub("", page.read_text()))]
    linked = {(page.parent / link).resolve() for page, link in found}
    inside = [str(path.relative_to(ROOT)) for path in linked if path.is_file() and path.is_relative_to(ROOT)]
    return sorted(path for path in inside if not path.startswith("docs/"))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page as Python-Markdown reads it: links within the site, deeper lists, names of files above their text."""
    uri = page.file.src_uri
    if uri.startswith("reference/"):
        return markdown
    here = Path(uri).relative_to("project") if uri.startswith("project/") else Path("docs", uri)
    text = _TITLES.sub(lambda m: f'{m[3]} title="{m["file"] or "what it prints"}"', markdown)
    parts = _BLOCK.split(text)  # every other one is a fence, and stays as it is
    parts[::2] = [_prose(part, here, uri) for part in parts[::2]]
    return lists("".join(parts))


def _prose(text: str, here: Path, uri: str) -> str:
    text = re.sub(r"`[^`\n]+`", lambda m: m[0].replace(r"\|", "|"), text)  # in a table: here code needs no escape
    return _LINK.sub(lambda m: f"{m[1]}{_in_site(here, uri, m[2])}{m[3] or ''}{m[4]}", text)


def _in_site(here: Path, uri: str, link: str) -> str:
    """A link of the page that lies at `here` in the repository and at `uri` in the site."""
    target = os.path.normpath(here.parent / link)
    name = target.removeprefix("docs/") if target.startswith("docs/") else f"project/{target}"
    return os.path.relpath(name, Path(uri).parent)


def lists(text: str) -> str:
    """Python-Markdown wants what belongs to an item of a list four columns further in; GitHub wants it below the
    item's text. What is in a fence keeps its own indentation."""
    lines, fence, inside = [], None, False
    for line in text.splitlines():
        start = len(line) - len(line.lstrip())
        if fence is None and line.strip() and not _ITEM.match(line) and not start:
            inside = False
        inside = inside or bool(fence is None and _ITEM.match(line))
        lines.append(" " * (fence if fence is not None else start) + line if inside and line.strip() else line)
        if _FENCE.match(line):
            fence = start if fence is None else None
    return "\n".join(lines) + "\n"
