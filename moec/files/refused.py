"""What the operating system refused, as an error that names the file that it is about."""

from __future__ import annotations

import errno
from pathlib import Path

from moec.errors import MoecError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_OWN = Path(__file__).parents[1]


def refused(error: OSError, place: Path | None = None, out: Path | None = None) -> MoecError | None:
    """M210 for what cannot be written, M218 for any other file; None where the error names no file and is about no
    room, so that nobody could say what it means.

    Args:
        error: as it was raised.
        place: the folder that was being written. out: its name for the user.
    """
    file, reason = error.filename, error.strerror or str(error)
    named = Path(file) if isinstance(file, str) else None
    if error.errno in NO_ROOM or (place and named and named.is_relative_to(place)):
        return MoecError("M210", f"it cannot be written: {reason}", str(out or file or ""), _MAKE_ROOM)
    if named is None:
        return None
    own = named.is_absolute() and named.is_relative_to(_OWN)
    fix = "install moec again: this file is part of it" if own else "check that it is there, and that you may use it"
    return MoecError("M218", f"{named.name}: {reason}", str(named), fix)


_MAKE_ROOM = "make room on the disk, or choose another place"
