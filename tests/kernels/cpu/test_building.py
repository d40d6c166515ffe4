from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.kernels.cpu import building


def test_the_library_holds_what_clients_look_for_and_little_else(cpu_kernels_file: Path) -> None:
    done = subprocess.run(["nm", "-D", "--defined-only", str(cpu_kernels_file)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs nm")
    names = {line.split()[-1] for line in done.stdout.splitlines()}
    assert {"RegisterCustomOps", "moec_cpu_experts"} <= names
    assert not any("moec4" in name or "_GLOBAL_" in name for name in names)  # C++ names of ours stay inside


def test_each_instruction_set_is_a_unit_with_flags_of_its_own() -> None:
    flags = {name: flags for name, _, flags in building.units()}
    assert not any(flag.startswith("-mavx") for name in flags if "avx" not in name for flag in flags[name])
    assert all(any(flag.startswith("-mavx") for flag in flags[name]) for name in flags if "avx" in name)
    assert {source for _, source, _ in building.units()} == {p.name for p in building.SOURCES.glob("*.cpp")}


def test_without_a_compiler_there_is_a_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MoecError, match="no C\\+\\+ compiler") as refused:
        building.build(tmp_path / "lib.so")
    assert refused.value.code == "M301"


def test_a_compiler_that_fails_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(MoecError, match="the compiler failed"):
        building.build(tmp_path / "lib.so")
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_may_have_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `CXX="ccache g++"`, and with a path that has a space in it."""
    if not (own := building.compiler()):
        pytest.skip("needs a C++ compiler")
    called = tmp_path / "my cache"
    called.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/said"\nexec "$@"\n')
    called.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{called}' {own[0]} -DNDEBUG")
    assert building.compiler() == [str(called), own[0], "-DNDEBUG"]
    monkeypatch.setattr(building, "units", lambda: [("processor", "processor.cpp", ("-DMOEC_TRIED", "-O0"))])
    assert building.build(tmp_path / "lib.so").stat().st_size > 0
    lines = (tmp_path / "said").read_text().splitlines()
    assert len(lines) == 2 and all(line.startswith(f"{own[0]} -DNDEBUG") for line in lines)
    monkeypatch.setenv("CXX", "no-such-cache g++")
    assert building.compiler() == []
    monkeypatch.setenv("CXX", "'unclosed")
    with pytest.raises(MoecError, match="no C\\+\\+ compiler"):
        building.build(tmp_path / "other.so")
