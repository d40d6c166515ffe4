"""The library of moec's own kernels in an engine's folder, and in the sessions that run it.

A library is code. moec never loads one out of an engine's folder: its sessions get the library of the installation, or
the one that `MOEC_CPU_KERNELS` names, and a folder whose copy, which other clients load, is another one is refused. So
what is proven is what lies there.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from moec.errors import AGAIN, MoecError, reason_of
from moec.files.regular import file_hash
from moec.kernels.cpu.building import LIBRARY
from moec.kernels.cpu.library import require_library, way_out


def register(options: Any) -> None:
    """Let sessions with these `onnxruntime.SessionOptions` know the library's operators. Raises M301 where it is not
    compiled, or does not load."""
    library = require_library()
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:  # the runtime has a type of its own for everything
        what = f"moec's own kernels do not load: {reason_of(error, 300)}"
        raise MoecError("M301", what, str(library), way_out()) from error


def put_into(folder: Path) -> None:
    """Copy the library into an engine's folder. Raises M301 where it is not compiled."""
    shutil.copyfile(require_library(), folder / LIBRARY)


def require_same(folder: Path) -> None:
    """Raise M106 where the library in an engine's folder is not the one that is installed here, M301 where none is."""
    own, copy = require_library(), folder / LIBRARY
    if not copy.is_file():
        what = f"{LIBRARY} is not in the engine's folder"
    elif file_hash(copy) != file_hash(own):
        what = f"{LIBRARY} is another than that of this installation"
    else:
        return
    raise MoecError("M106", what, str(copy), AGAIN)
