"""How pages are made of templates: everything is escaped, what is missing is an error, and nothing is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moec.shown import shown, size_of

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"  # beside this file, whatever `moec` is elsewhere


def environment() -> Environment:
    """Where templates find each other, and how they print."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    files = FileSystemLoader(TEMPLATES)
    env = Environment(
        loader=files, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    env.filters |= {"bytes": size_of}
    return env


def _shown(value: Any) -> Any:
    """What a template prints: texts of others cannot steer who reads them; plain text only, markup is the page's."""
    return shown(value) if type(value) is str else value
