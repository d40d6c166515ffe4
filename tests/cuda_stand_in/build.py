"""The stand-in's libraries: built once from the sources here, gcc, and the CUDA headers that Triton's wheel carries."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from unittest import SkipTest

import torch

SOURCES = Path(__file__).parent
LIBRARIES: dict[str, tuple[str, ...]] = {  # file name -> sources
    "libcudart.so.13": ("runtime.cpp", "kernels.cpp", "copies.cpp"),
    "libcublas.so.13": ("blas.cpp",),
    "libcublasLt.so.13": ("blaslt.cpp",),
    "libcuda.so.1": ("driver.cpp",),
    "libcurand.so.10": (),  # linked to and never called
}
WRITES = "libcudart.so.13"  # it holds the log, which the others write to
UNVERSIONED = ("libcuda.so.1",)
STUB = 'extern "C" void stand_in_write(const char*, ...);\n{}\n'
# what the provider asks for and the sources do not have: the runtime's fails, the others' is named and succeeds
UNKNOWN = 'extern "C" int {name}() {{ stand_in_write("fault {name} is unknown to the stand-in"); return 801; }}'
CALLED = 'extern "C" int {name}() {{ stand_in_write("call {name}"); return 0; }}'


class Missing(SkipTest):
    """What building the stand-in needs and is not here: a test that meets it is skipped."""


def provider() -> Path:
    """ONNX Runtime's CUDA provider. Raises `Missing` where the installed package has none."""
    package = importlib.util.find_spec("onnxruntime")
    if package is None or not package.origin:
        raise Missing("onnxruntime is not installed")
    path = Path(package.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not path.is_file():
        raise Missing("the installed onnxruntime has no CUDA provider (onnxruntime-gpu has)")
    return path


def headers() -> Path:
    """The folder with cuda_runtime_api.h: of Triton's wheel, or that which CUDA_INCLUDE names."""
    if "CUDA_INCLUDE" in os.environ:
        return Path(os.environ["CUDA_INCLUDE"])
    package = importlib.util.find_spec("triton")
    if package is None or not package.origin:
        raise Missing("triton is not installed: its wheel carries the CUDA headers")
    return Path(package.origin).parent / "backends" / "nvidia" / "include"


@cache
def library() -> Path:
    """The folder with the libraries, for LD_LIBRARY_PATH; it is built where the system keeps temporary files, once for
    each content of the sources and each provider.

    Raises `Missing` where gcc, the headers or the provider are not here.
    """
    if torch.version.cuda is not None:
        raise Missing("PyTorch here is a CUDA build: its own libraries come before the stand-in's")
    tools = [tool for tool in ("g++", "nm") if shutil.which(tool) is None]
    if tools:
        raise Missing(f"{' and '.join(tools)} not found")
    include, needed = headers(), provider()
    folder = Path(tempfile.gettempdir()) / f"cuda_stand_in-{os.getuid()}-{_content(needed)}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            _build(Path(work), include, needed)
            _publish(Path(work), folder)
    return folder


def _content(needed: Path) -> str:
    """Names the sources and the provider: the same content is built once."""
    facts = [p.read_bytes() for p in sorted(SOURCES.glob("*.cpp")) + sorted(SOURCES.glob("*.h"))]
    facts += [Path(__file__).read_bytes(), str(needed.stat().st_size).encode(), str(needed).encode()]
    return hashlib.sha256(b"\0".join(facts)).hexdigest()[:16]


def _publish(work: Path, folder: Path) -> None:
    """Under its name in one step; who was faster has built the same."""
    made = work / "made"
    made.mkdir()
    for name in LIBRARIES:
        (work / name).rename(made / name)
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _build(work: Path, include: Path, needed: Path) -> None:
    wanted = _undefined(needed)
    for name, files in LIBRARIES.items():
        sources = [str(SOURCES / file) for file in files]
        _link(work, name, sources, include)
        absent = sorted(wanted.get(name, set()) - _defined(work / name))
        if absent or not sources:
            stub = work / "stub.cpp"
            function = UNKNOWN if name == WRITES else CALLED
            stub.write_text(STUB.format("\n".join(function.format(name=f) for f in absent)))
            _link(work, name, [*sources, str(stub)], include)


def _link(work: Path, name: str, sources: list[str], include: Path) -> None:
    """One library, its symbols under the version that the provider asks for."""
    versions = work / "versions"
    versions.write_text("{ global: *; };" if name in UNVERSIONED else f"{name} {{ global: *; }};")
    command = ["g++", "-O1", "-g0", "-w", "-fPIC", "-shared", f"-I{include}", "-x", "c++", *(sources or ["/dev/null"])]
    command += ["-x", "none", f"-Wl,-soname,{name}", f"-Wl,--version-script={versions}", "-o", str(work / name)]
    command += [] if name == WRITES else [str(work / WRITES)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} does not build:\n{done.stderr[-4000:]}")


def _undefined(needed: Path) -> dict[str, set[str]]:
    """What the provider asks of each library."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", needed], capture_output=True, text=True, check=True).stdout
    wanted: dict[str, set[str]] = {}
    for symbol, version in re.findall(r" U (\w+)@(lib\S+)", listed):
        wanted.setdefault(version, set()).add(symbol)
    return wanted


def _defined(built: Path) -> set[str]:
    listed = subprocess.run(["nm", "-D", "--defined-only", built], capture_output=True, text=True, check=True).stdout
    return {symbol.partition("@")[0] for symbol in re.findall(r" \w (\S+)", listed)}
