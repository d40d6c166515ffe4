"""Files beside a user's own are found first, as they are now, compiled ones too."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import py_compile
import shutil
import sys
from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.files.regular import file_hash
from moec.frontend.beside import held_to, lies_in
from moec.frontend.users_code import import_file, siblings_of

COMPILED = "xxlimited"  # an example of a compiled module that comes with Python and nobody imports


@pytest.mark.parametrize(
    ("place", "name", "lies"),
    [
        ("helper.py", "helper", True),
        ("helper.pyc", "helper", True),
        ("helper.cpython-312-x86_64-linux-gnu.so", "helper", True),
        ("helper.abi3.so", "helper", True),
        ("layers/__init__.py", "layers", True),
        ("layers/fast.cpython-312-x86_64-linux-gnu.so", "layers.fast", True),
        ("env/helper.py", "helper", False),
        ("../helper.py", "helper", False),
        (".", "helper", False),
    ],
)
def test_which_modules_lie_in_a_folder(place: str, name: str, lies: bool, tmp_path: Path) -> None:
    assert lies_in(str(tmp_path / place), name, tmp_path) is lies and not lies_in(None, name, tmp_path)


def test_a_compiled_sibling_is_hashed_and_forgotten(tmp_path: Path) -> None:
    spec = importlib.util.find_spec(COMPILED)
    if spec is None or not spec.origin or not spec.origin.endswith(".so"):
        pytest.skip(f"this Python comes without the module {COMPILED}")
    name = Path(shutil.copy(spec.origin, tmp_path)).name
    (tmp_path / "model.py").write_text(f"import {COMPILED}\n")
    (tmp_path / "other.py").write_text("")
    import_file(tmp_path / "model.py")
    assert siblings_of(tmp_path / "model.py") == {name: tmp_path / name}
    import_file(tmp_path / "other.py")
    assert COMPILED not in sys.modules
    with held_to({}), pytest.raises(MoecError) as caught:
        import_file(tmp_path / "model.py")
    assert caught.value.code == "M106" and name in caught.value.what


def test_compiled_code_that_python_keeps_is_not_run(tmp_path: Path) -> None:
    """It has the time and size of its source, and another number in it."""
    sources = {name: tmp_path / f"{name}.py" for name in ("sizes_of_it", "model")}
    sources["sizes_of_it"].write_text("size = 1\n")
    sources["model"].write_text("from sizes_of_it import size; own = 1\n")
    for file in sources.values():
        right, times = file.read_text(), (1_600_000_000, 1_600_000_000)
        file.write_text(right.replace("1", "2"))
        os.utime(file, times)
        py_compile.compile(str(file))
        file.write_text(right)
        os.utime(file, times)
    module = import_file(sources["model"])
    assert (module.size, module.own) == (1, 1) and len(list(tmp_path.rglob("*.pyc"))) == 2


def test_only_files_of_these_hashes_are_run(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("try:\n    import quick_part\nexcept ImportError:\n    quick_part = None\n")
    with held_to({}):
        assert import_file(tmp_path / "model.py").quick_part is None
    (tmp_path / "quick_part.py").write_text("raise SystemExit\n")
    for hashes in ({}, {"quick_part.py": "0" * 64}):
        with held_to(hashes), pytest.raises(MoecError) as caught:
            import_file(tmp_path / "model.py")
        assert caught.value.code == "M106" and "quick_part.py" in caught.value.what
    (tmp_path / "quick_part.py").write_text("speed = 3\n")
    with held_to({"quick_part.py": file_hash(tmp_path / "quick_part.py")}):
        assert import_file(tmp_path / "model.py").quick_part.speed == 3
