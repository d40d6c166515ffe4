"""The library of kernels for CPUs, compiled from the sources beside this file: `python -m moec.kernels.cpu.building`.

A C++17 compiler is all that it needs. Functions on rows are compiled once for each instruction set, everything else for
any processor of the architecture; which set runs is decided when the library is loaded. `-ffp-contract=off`: what is
fused is said in the sources, so that every instruction set rounds alike.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moec.errors import MoecError

SOURCES = Path(__file__).parent
LIBRARY = "libmoec_cpu.so"
FLAGS = (
    "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra",
    # of the compiler's own headers: https://gcc.gnu.org/bugzilla/show_bug.cgi?id=105593
    "-Wno-uninitialized", "-Wno-maybe-uninitialized",
)  # fmt: skip
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
AVX512_BF16 = (*AVX512, "-mavx512bf16")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g")


def compiler() -> list[str]:
    """The C++ compiler, a command and its arguments: that of the environment's `CXX`, which may be `ccache g++`, or the
    first of `c++`, `g++` and `clang++` that is here. Empty where there is none."""
    if named := os.environ.get("CXX", "").strip():
        try:
            wanted = [named] if shutil.which(named) else shlex.split(named)
        except ValueError:  # a quote that does not end
            return []
        return wanted if shutil.which(wanted[0]) else []
    return next(([found] for found in map(shutil.which, ("c++", "g++", "clang++")) if found), [])


def units() -> list[tuple[str, str, tuple[str, ...]]]:
    """What is compiled: a name, its source, and flags of its own."""
    found: list[tuple[str, str, tuple[str, ...]]]
    found = [(path.stem, path.name, ("-O3",)) for path in sorted(SOURCES.glob("*.cpp")) if path.stem != "isa"]
    if platform.machine() not in ("x86_64", "AMD64"):
        return [*found, ("isa_plain", "isa.cpp", ("-O3",))]  # all that there is
    found += [("isa_plain", "isa.cpp", ("-O1",))]  # the reference; larger code would not make it fast
    found += [("isa_avx2", "isa.cpp", ("-O3", *AVX2)), ("isa_avx512", "isa.cpp", ("-O3", *AVX512))]
    return [*found, ("isa_avx512_bf16", "isa.cpp", ("-O3", *AVX512_BF16))]


def stamp() -> str:
    """What a library says of the sources and flags that it was compiled from: their SHA-256."""
    found = hashlib.sha256(repr((FLAGS, units())).encode())
    for path in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))):
        found.update(path.read_bytes())
    return f"moec.cpu sources {found.hexdigest()}"


def build(out: Path, more: Sequence[str] = ()) -> Path:
    """Compile the library.

    Args:
        out: the file to be written; one that is there is replaced in one step.
        more: flags for compiling and linking, such as a sanitizer's.

    Returns:
        `out`.

    Raises:
        MoecError: M301 where there is no compiler, or it does not take the sources.
    """
    own = compiler()
    if not own:
        raise MoecError("M301", "there is no C++ compiler", "moec.kernels.cpu", "install g++, or set CXX to another")
    said = (f'-DMOEC_SOURCES="{stamp()}"',)
    with tempfile.TemporaryDirectory(prefix="moec-kernels-") as work, ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda unit: _compile(own, Path(work), unit, (*said, *more)), units()))
        made = out.with_name(f".{out.name}.{os.getpid()}")
        _run([*own, "-shared", "-o", str(made), *map(str, objects), *more])
    made.replace(out)
    return out


def _compile(own: list[str], work: Path, unit: tuple[str, str, tuple[str, ...]], more: Sequence[str]) -> Path:
    name, source, flags = unit
    found = work / f"{name}.o"
    _run([*own, *FLAGS, *flags, *more, "-c", str(SOURCES / source), "-o", str(found)])
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise MoecError("M301", f"the compiler failed: {lines[0][:200]}", " ".join(command[:1]), "set CXX to another")


def main() -> None:
    """Build into this folder, or where `--out` says; `--sanitize` with checks of memory and undefined behaviour."""
    parser = argparse.ArgumentParser(description="Compile moec's kernels for CPUs.")
    parser.add_argument("--out", type=Path, default=SOURCES / LIBRARY)
    parser.add_argument("--sanitize", action="store_true")
    options = parser.parse_args()
    try:
        print(build(options.out, SANITIZED if options.sanitize else ()))
    except MoecError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
