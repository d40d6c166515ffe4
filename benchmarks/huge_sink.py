"""A sink that counts and hashes: an engine of 671 billion parameters is written, and no disk is asked for."""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counted:
    """What became of one file."""

    bytes: int
    sha256: str


@dataclass
class CountingSink:
    """Takes any files; see `moec.files.sink.Sink`.

    Attributes:
        files: those that are closed. hash_s: processor time that hashing took.
    """

    files: dict[str, Counted] = field(default_factory=dict)
    hash_s: float = 0.0

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files.values())

    @property
    def sha256(self) -> str:
        """Of all names and hashes."""
        text = "".join(f"{name} {file.sha256}\n" for name, file in sorted(self.files.items()))
        return hashlib.sha256(text.encode()).hexdigest()

    def create(self, name: str) -> Any:
        """A file that keeps nothing but its length and its hash."""
        return _File(self, name)


class _File(io.RawIOBase):
    def __init__(self, sink: CountingSink, name: str) -> None:
        self._sink, self._name, self._size, self._hash = sink, name, 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        since = time.thread_time()
        self._hash.update(content)
        self._sink.hash_s += time.thread_time() - since
        self._size += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._sink.files[self._name] = Counted(self._size, self._hash.hexdigest())
        super().close()
