"""What `--set` is given: `KEY=VALUE`, where the key's parts have dots between them and may stand in quotes, as in TOML:
`quantize.rules."*.experts.*".bits=2`."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass

from moec.errors import MoecError

_QUOTED = r""""(?:\\.|[^"\\])*"|'[^']*'"""
_PART = rf"""\s*(?:{_QUOTED}|[^\s."'=][^."'=]*)"""
_SAID = re.compile(rf"(?P<key>{_PART}\s*(?:\.{_PART}\s*)*)=(?P<value>.*)", re.DOTALL)
_BARE = re.compile(r"[\w-]+", re.ASCII)
_FORM = "write for example --set quantize.experts=8, or --set seed=3"


@dataclass(frozen=True)
class Said:
    """One `KEY=VALUE`.

    Attributes:
        key: as it was written.
        path: its parts, without quotes.
        quoted: which of them stood in quotes.
        value: the text behind the equals sign.
    """

    key: str
    path: tuple[str, ...]
    quoted: tuple[bool, ...]
    value: str


def read_said(texts: Sequence[str]) -> list[Said]:
    """Every `KEY=VALUE`, in order. Raises M201 for a text of another form, and for a key that is said twice."""
    found = dict[tuple[str, ...], Said]()
    for text in texts:
        said = _read(text)
        if said.path in found:
            raise MoecError("M201", f"{said.key} is said twice", "--set", "say it once")
        found[said.path] = said
    return list(found.values())


def written(path: Sequence[str]) -> str:
    """A key that reads back as these parts; quotes stand where one needs them."""
    return ".".join(part if _BARE.fullmatch(part) else json.dumps(part, ensure_ascii=False) for part in path)


def _read(text: str) -> Said:
    match = _SAID.fullmatch(text)
    try:
        parts = [part.strip() for part in re.findall(_PART, match["key"])] if match else []
        path = tuple(tomllib.loads(f"part = {part}")["part"] if part[0] in "'\"" else part for part in parts)
    except tomllib.TOMLDecodeError:
        match, path = None, ()
    if match is None:
        raise MoecError("M201", f"{text!r} is not KEY=VALUE", "--set", _FORM)
    quoted = tuple(part[0] in "'\"" for part in parts)
    return Said(match["key"].strip(), path, quoted, match["value"].strip())
