"""Where the compiled kernels for CPUs are, if they are here, and what makes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from moec.errors import MoecError
from moec.kernels.cpu.building import LIBRARY, SOURCES, compiler, stamp

PLACE = "MOEC_CPU_KERNELS"  # of the environment: the library's file, where it is not beside the sources
MAKE = "python -m moec.kernels.cpu.building"


def uses_own_kernels(options: Mapping[str, str]) -> bool:
    """Whether engines with these options of a target may hold operators of the library."""
    return options.get("kernels") == "moec"


def library() -> Path | None:
    """The file of the compiled kernels; None where nobody has compiled them."""
    named = os.environ.get(PLACE)
    file = Path(named) if named else SOURCES / LIBRARY
    return file.resolve() if file.is_file() else None


def why_not() -> str:
    """Why the kernels cannot be used here, in a few words; empty where they can."""
    if found := library():
        return "" if stamp().encode() in found.read_bytes() else f"{found} was compiled from other sources"
    if named := os.environ.get(PLACE):
        return f"{PLACE} names {named}, and there is no such file"
    return "moec's own kernels for CPUs are not compiled" + ("" if compiler() else ", and there is no C++ compiler")


def way_out() -> str:
    """What makes them, or makes them anew."""
    make = MAKE if compiler() else f"install g++, then run: {MAKE}"
    return f"unset {PLACE}, or {make} --out ${PLACE}" if os.environ.get(PLACE) else make


def require_library(wanted_by: str = "kernels=moec") -> Path:
    """The file of the compiled kernels. Raises M301 where it is not there, or is of other sources."""
    found, wrong = library(), why_not()
    if found is None or wrong:
        raise MoecError("M301", wrong, wanted_by, way_out())
    return found
