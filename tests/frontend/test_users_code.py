from __future__ import annotations

import string
import sys
from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.frontend.users_code import call, import_file


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
