"""The wheel holds what the tree holds: an editable install would hide a package or a data file that is missing."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from moec.kernels.cpu.building import LIBRARY, compiler

ROOT = Path(__file__).parents[1]
HOMES = {"moec": "moec", "passes": "moec/passes", "backends": "moec/backends"}  # folder -> place in the wheel
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", *HOMES)
KERNELS = f"moec/kernels/cpu/{LIBRARY}"


def tree(root: Path) -> set[str]:
    """Every file of the packages, code and data, where the wheel must have it; no library that was compiled there."""
    found = [p for folder in HOMES for p in (root / folder).rglob("*") if p.is_file() and p.suffix != ".so"]
    files = [p.relative_to(root) for p in found]
    return {str(Path(HOMES[f.parts[0]], *f.parts[1:])) for f in files if "__pycache__" not in f.parts}


def contents(names: Iterable[str]) -> set[str]:
    """A wheel's files without its metadata."""
    return {name for name in names if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is built from: a build leaves folders in its tree, and takes files from them again."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, folder)
    (folder / "moec" / "kernels" / "cpu" / LIBRARY).write_bytes(b"compiled here")
    return folder


def build(source: Path, out: Path, cxx: str = "false") -> Path:
    """The wheel of a tree, built in an environment of its own. Skips where pip cannot get the build's own tools.

    Args:
        cxx: the C++ compiler; by default one that fails, which is quick.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CXX": cxx})
    if done.returncode and "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("pip cannot get setuptools here, which builds the wheel")
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("moec-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build(source, tmp_path_factory.mktemp("wheel")))


@pytest.mark.slow
def test_the_wheel_holds_every_file(wheel: zipfile.ZipFile, source: Path) -> None:
    wheel_files = contents(wheel.namelist())
    assert wheel_files == tree(source)
    assert {"moec/py.typed", "moec/kernels/tiles.toml", "moec/backends/tensorrt/operators.toml"} <= wheel_files
    assert any(n.startswith("moec/report/templates/") for n in wheel_files) and "moec/presets/int4.toml" in wheel_files


@pytest.mark.slow
def test_a_wheel_without_kernels_is_for_any_processor(wheel: zipfile.ZipFile) -> None:
    assert str(wheel.filename).endswith("-py3-none-any.whl") and KERNELS not in wheel.namelist()


@pytest.mark.slow
@pytest.mark.skipif(not compiler(), reason="needs a C++ compiler")
def test_with_a_compiler_the_wheel_holds_kernels_that_run(source: Path, tmp_path: Path) -> None:
    quick = tmp_path / "compiler"  # the last flag decides; tests/kernels/cpu compiles as a wheel is compiled
    quick.write_text(f'#!/bin/sh\nexec {shlex.join(compiler())} "$@" -O0\n')
    quick.chmod(0o755)
    built = build(source, tmp_path, str(quick))
    assert "-py3-none-linux_" in built.name, "the processor is in its name, no version of Python"
    zipfile.ZipFile(built).extractall(tmp_path / "site")
    asked = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from moec.kernels.cpu import library; print(library.library(), library.why_not(), sep='|')\n"
        "import ctypes; assert ctypes.CDLL(str(library.library())).moec_cpu_isa(b'')"
    )
    command = [sys.executable, "-I", "-c", asked, str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == f"{tmp_path / 'site' / KERNELS}|", done.stderr


@pytest.mark.slow
def test_the_wheel_has_the_command(wheel: zipfile.ZipFile) -> None:
    (entry,) = (n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt"))
    assert "moec = moec.cli:main" in wheel.read(entry).decode()


@pytest.mark.slow
def test_a_forgotten_package_and_file_are_seen(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy", ignore=shutil.ignore_patterns("build", "*.egg-info")))
    project = (copy / "pyproject.toml").read_text()
    assert '    "moec.text",\n' in project and '"moec.kernels" = ["*.toml"]\n' in project
    project = project.replace('    "moec.text",\n', "").replace('"moec.kernels" = ["*.toml"]\n', "")
    (copy / "pyproject.toml").write_text(project)
    wheel_files = contents(zipfile.ZipFile(build(copy, tmp_path / "out")).namelist())
    assert {"moec/text/writer.py", "moec/kernels/tiles.toml"} <= tree(source) - wheel_files
