"""Files as they were when a model was opened: a hash that a report states has to be that of the bytes that were read.

A file can change between the reading and the hashing. So what the file system knows of it is noted before it is read:
where it lies, its size, and when it was written and changed, which no writer can set back. At the end all must be as it
was; then the bytes that were read are those that are hashed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moec.errors import MoecError
from moec.files.regular import file_hash

_SMALL_BYTES = 2**20  # files up to this size are also hashed at once: clocks of file systems are coarse


@dataclass(frozen=True)
class Snapshot:
    """What stood on disk. `states`: of each file, see `_state`."""

    states: dict[Path, tuple[int | str, ...]]

    @classmethod
    def of(cls, files: Iterable[Path]) -> Snapshot:
        """Of those files that there are; to be taken before they are read."""
        return cls({path: _state(path) for path in files if path.is_file()})

    def and_of(self, files: Iterable[Path]) -> Snapshot:
        """The same with more files."""
        return Snapshot({**Snapshot.of(files).states, **self.states})

    def require_unchanged(self) -> None:
        """Raise M106 naming the first file that is not what it was."""
        for path, state in self.states.items():
            if not path.is_file() or _state(path) != state:
                what = f"{path.name} was changed while it was read, so that nobody knows which bytes the engine is of"
                raise MoecError("M106", what, str(path), "leave the model alone meanwhile, and compile again")


def _state(path: Path) -> tuple[int | str, ...]:
    """Inode, size, times in nanoseconds, and the hash of a small file."""
    found = path.stat()
    digest = file_hash(path) if found.st_size <= _SMALL_BYTES else ""
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, digest
