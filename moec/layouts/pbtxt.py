"""Plain data in protocol buffers' text format, as far as configuration files need it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class EnumName(str):
    """A word that is written without quotes: a value of an enumeration."""


def pbtxt(fields: Mapping[str, Any], indent: str = "") -> str:
    """Fields in text format, one a line: a mapping is a message, a list of mappings a repeated message, a list of
    scalars `[a, b]`."""
    return "".join(_field(name, value, indent) for name, value in fields.items())


def _field(name: str, value: Any, indent: str) -> str:
    if isinstance(value, Mapping):
        return f"{indent}{name} {{\n{pbtxt(value, indent + '  ')}{indent}}}\n"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "".join(_field(name, message, indent) for message in value)
    text = f"[{', '.join(map(_scalar, value))}]" if isinstance(value, list) else _scalar(value)
    return f"{indent}{name}: {text}\n"


def _scalar(value: Any) -> str:
    if isinstance(value, EnumName):
        return value
    return json.dumps(value, ensure_ascii=True)  # numbers, true and false, and quoted text are the same in both formats
