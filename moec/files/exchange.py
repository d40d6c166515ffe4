"""One folder in another's place, in one step: whoever looks sees the old one or the new one, and never none."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

_HERE = -100  # AT_FDCWD
_NO_REPLACE, _EXCHANGE = 1, 2  # of renameat2(2)
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # an old kernel, or a file system without it


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders that exist, in one step. False where the system has no such call; raises OSError otherwise."""
    return _rename(one, other, _EXCHANGE)


def move(new: Path, out: Path) -> None:
    """Give a folder a name that is free. Raises FileExistsError when it is not, so that nothing is lost between a look
    and the move."""
    if not _rename(new, out, _NO_REPLACE):
        if out.exists() or out.is_symlink():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(out))
        new.rename(out)


def _rename(source: Path, target: Path, flag: int) -> bool:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if function is None:
        return False
    if function(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))
