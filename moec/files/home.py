"""The user's home, which a user may be without: a number that no list of users knows, in a container."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def home() -> Path | None:
    """`$HOME`, or what the system's list of users says; None where neither says one."""
    with suppress(RuntimeError):
        return Path.home()
    return None


def cache_home() -> Path | None:
    """Where programs keep what can be made again: `$XDG_CACHE_HOME`, else `~/.cache`; None without a home."""
    told, own = os.environ.get("XDG_CACHE_HOME"), home()
    return Path(told) if told else own and own / ".cache"
