"""The list of the dialect's operators is what the dialect registers, and costs nothing to read."""

from __future__ import annotations

import subprocess
import sys

import torch

import moec.dialect  # noqa: F401
from moec.program.dialect_names import OPERATORS


def test_they_are_what_the_dialect_registers() -> None:
    """But for gradients, which nobody calls by name."""
    own = {str(name).removeprefix("moec::") for name in torch._C._dispatch_get_all_op_names() if name[:6] == "moec::"}
    assert sorted(OPERATORS) == sorted(name for name in own if "backward" not in name)
    assert all(hasattr(torch.ops.moec, name) for name in OPERATORS)


def test_reading_them_does_not_import_torch() -> None:
    code = "import sys, moec.program.dialect_names; assert not {'torch', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
