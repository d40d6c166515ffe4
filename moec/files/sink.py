"""Where the files of an engine or a checkpoint go, one after another and each from its begin to its end.

That is a folder, nearly always. What only counts or hashes the bytes takes a model that no disk here holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


class Sink(Protocol):
    """Takes files whose bytes come in order; nothing is read back, and no place in a file is sought."""

    def create(self, name: str) -> BinaryIO:
        """A new file of this name, to be written and closed. Raises OSError where there is no room for it."""


@dataclass(frozen=True)
class FolderSink:
    """Files of a folder that is there already."""

    folder: Path

    def create(self, name: str) -> BinaryIO:
        """The file, emptied where it was there."""
        return (self.folder / name).open("wb")
