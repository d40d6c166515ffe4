"""Texts of others as people may see them: what steers a terminal or turns the direction of writing is spelled out."""

from __future__ import annotations

import re

# C0 without tab and line feed, DEL and C1; marks and overrides of direction; separators of lines; halves of surrogates;
# tags. The joiners U+200C and U+200D stay, since scripts and emoji need them.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)


def shown(text: str) -> str:
    r"""A text in which every steering character is written as Python writes it, e.g. `\x1b`; lines and tabs stay."""
    return _STEERING.sub(_spelled, text)


def one_line(text: str) -> str:
    """The same in one line: a name that holds line feeds cannot pose as lines of ours."""
    return shown(text).replace("\n", "\\n").replace("\t", "\\t")


def _spelled(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
