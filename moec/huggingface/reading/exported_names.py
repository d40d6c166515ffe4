"""What the files of transformers export, looked up faster: its import reads over a thousand of them for that, twice.

transformers splits the whole text of each file into lines to find where its `__all__` stands; here the same function is
given the end of the text. It keeps what it found of 128 folders, and has more than 400; here all is kept. Imported
right behind `transformers.utils.import_utils`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

Fetch = Callable[[str], list[str]]


def from_last(fetch: Fetch) -> Fetch:
    """`fetch__all__`, which looks for the last line that begins with `__all__`, given the text from such a line on."""

    def fetch__all__(file_content: str) -> list[str]:
        return fetch(file_content[max(0, file_content.rfind("\n__all__")) :])

    return fetch__all__


def quicken(import_utils: ModuleType) -> None:
    """Put both into the module of transformers that has them; a version without them stays as it is."""
    module: Any = import_utils
    if hasattr(module, "fetch__all__"):
        module.fetch__all__ = from_last(module.fetch__all__)
    scan: Any = getattr(module, "create_import_structure_from_path", None)
    if hasattr(scan, "cache_info"):
        module.create_import_structure_from_path = cache(scan.__wrapped__)


if (_import_utils := sys.modules.get("transformers.utils.import_utils")) is not None:
    quicken(_import_utils)
