"""What the files of transformers export, looked up faster: its import reads over a thousand of them for that.

transformers splits the whole text of each file into lines to find where its `__all__` stands. Here the same function is
given the end of the text. Imported right behind `transformers.utils.import_utils`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

Fetch = Callable[[str], list[str]]


def from_last(fetch: Fetch) -> Fetch:
    """`fetch__all__`, which looks for the last line that begins with `__all__`, given the text from such a line on."""

    def fetch__all__(file_content: str) -> list[str]:
        return fetch(file_content[max(0, file_content.rfind("\n__all__")) :])

    return fetch__all__


def quicken(import_utils: ModuleType) -> None:
    """Put it into the module of transformers that has it; a version without it stays as it is."""
    if hasattr(import_utils, "fetch__all__"):
        import_utils.fetch__all__ = from_last(import_utils.fetch__all__)  # type: ignore[attr-defined]


if (_import_utils := sys.modules.get("transformers.utils.import_utils")) is not None:
    quicken(_import_utils)
