"""One module imported right after another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def python(code: str, folder: Path | None = None) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SHOWN = "print(torch.ops.moec.route.default._schema.name, torch.ops.moec.moe, torch.ops.moec.attention)"


@pytest.mark.parametrize(
    "imports", ["import moec.errors; import torch", pytest.param("import torch, moec", marks=pytest.mark.repeats)]
)
def test_the_operators_are_there_in_whatever_order(imports: str) -> None:
    assert python(f"{imports}; {SHOWN}").startswith("moec::route moec.moe")


def test_torch_is_not_imported_before_somebody_asks_for_it() -> None:
    code = "import moec, moec.cli, sys, importlib.util as u; u.find_spec('torch'); print('torch' in sys.modules)"
    assert python(code) == "False"


def test_the_second_follows_once_and_the_first_is_loaded_as_ever(tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text("value = 1")
    (tmp_path / "second.py").write_text("import first; print('second sees', first.value)")
    code = (
        "import sys, importlib.util; from moec.when_imported import when_imported; before = list(sys.meta_path)\n"
        "when_imported('first', 'second'); when_imported('nowhere', 'second')\n"
        "importlib.util.find_spec('first'); print('second' in sys.modules, importlib.util.find_spec('nowhere'))\n"
        "import first; print(type(first.__loader__).__name__, len(sys.meta_path) - len(before))\n"
        "when_imported('first', 'second')"
    )
    found = python(code, tmp_path).splitlines()
    assert found == ["False None", "second sees 1", "SourceFileLoader 1"]
