from __future__ import annotations

import string
import sys
from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.frontend.users_code import call, import_file, siblings_of


def test_a_file_takes_no_module_place(tmp_path: Path) -> None:
    (tmp_path / "string.py").write_text("def build():\n    return 7\n")
    found = import_file(tmp_path / "string.py")
    assert call(found, "build", "string.py:build") == 7
    assert sys.modules["string"] is string and hasattr(string, "ascii_letters")


@pytest.mark.parametrize("code", ["raise SystemExit(0)", "import sys; sys.exit()", "1 / 0", "def"])
def test_whatever_ends_a_file_is_its_failure(code: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(code)
    with pytest.raises(MoecError) as caught:
        import_file(tmp_path / "model.py")
    assert caught.value.code == "M204"


def test_whatever_ends_a_callable_is_its_failure(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def build():\n    raise SystemExit(0)\n\nnumber = 7\n")
    module = import_file(tmp_path / "model.py")
    for name in ("build", "number", "gone"):
        with pytest.raises(MoecError) as caught:
            call(module, name, f"model.py:{name}")
        assert caught.value.code == "M204"


def test_an_interrupt_stays_one(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        import_file(tmp_path / "model.py")


def folder_of(root: Path, name: str, value: int) -> Path:
    """A file with siblings of the usual names: a module, and a package whose last part is imported late."""
    folder = root / name
    (folder / "layers").mkdir(parents=True)
    (folder / "layers" / "__init__.py").write_text("")
    (folder / "layers" / "late.py").write_text(f"late = {value}")
    (folder / "sizes.py").write_text(f"size = {value}")
    (folder / "model.py").write_text(
        "from sizes import size\n\ndef build():\n    from layers.late import late\n    return size, late\n"
    )
    return folder / "model.py"


def test_a_file_finds_those_beside_it_and_another_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    one, two = folder_of(tmp_path, "one", 1), folder_of(tmp_path, "two", 2)
    path = list(sys.path)
    first = import_file(one)
    assert call(first, "build", "one") == (1, 1)
    names = ["layers/__init__.py", "layers/late.py", "sizes.py"]
    assert siblings_of(one) == {name: one.parent / name for name in names}
    assert call(import_file(two), "build", "two") == (2, 2) and siblings_of(one) == {}
    (one.parent / "sizes.py").write_text("size = 9")
    assert call(import_file(one), "build", "one") == (9, 1)
    assert sys.path == path and not list(tmp_path.rglob("__pycache__")) and not sys.dont_write_bytecode


def test_an_environment_in_the_folder_is_no_sibling(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "some_library.py").write_text("")
    (tmp_path / "model.py").write_text("import sys; sys.path.append('env')\nimport some_library\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(sys, "path", [*sys.path])
        import_file(tmp_path / "model.py")
    assert siblings_of(tmp_path / "model.py") == {} and sys.modules.pop("some_library")


def test_a_sibling_that_is_missing_is_the_files_failure(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import nowhere_at_all")
    with pytest.raises(MoecError, match="nowhere_at_all"):
        import_file(tmp_path / "model.py")
